"""Shares of a step: every item in exactly one of them, in order, groups whole, and about as much for each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.train.batch import Example, pack, sequence_mean
from fathom.train.parallel import Team, combined


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
def test_shares_follow_each_other_and_leave_nothing_out(costs: list[int], size: int) -> None:
    shares = [Team(rank, size).share(costs) for rank in range(size)]
    assert [i for share in shares for i in range(*share.indices(len(costs)))] == list(range(len(costs)))
    even = sum(costs) / size
    for share in shares:  # no share is off by more than an item on each side
        assert abs(sum(costs[share]) - even) <= max(costs, default=0) + 1e-9


def example(group: int, tokens: int) -> Example:
    made = np.concatenate([np.full(4, group), np.arange(tokens)]).astype(np.int32)
    return Example(made, np.arange(len(made)) >= 4, 1.0, np.zeros(len(made)), group=str(group), shared=4)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_packed_step_is_the_sum_of_its_shares(size: int) -> None:
    """The coefficients are the whole step's, and no group is cut."""
    examples = [example(group, 3 + 2 * member + group) for group in range(4) for member in range(3)]
    whole = pack(examples, sequence_mean, 1000)
    parts = [pack(examples, sequence_mean, 1000, team=Team(rank, size)) for rank in range(size)]
    weights = np.concatenate([b.weight.numpy() for batches in parts for b in batches])
    assert np.array_equal(weights, np.concatenate([b.weight.numpy() for b in whole]))
    groups = [{g for b in batches for g in b.groups} for batches in parts]
    assert sum(len(found) for found in groups) == 4
    assert all(b.total == pytest.approx(1) for batches in parts for b in batches)


def test_terms_add_but_for_the_largest() -> None:
    import torch

    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert float(combined("loss", None, one)) == 1
    assert float(combined("loss", one, two)) == 3
    assert float(combined("mismatch_max", one, two)) == 2


def test_a_team_of_one_asks_nobody() -> None:
    team = Team()
    assert team.leads and team.tell(lambda: 3) == 3 and team.gather([1, 2]) == [1, 2]
    with team.in_turn():
        pass
