"""Log-probabilities in pieces, and the written-out gradients of norm, rotation, dispatch and combination."""

import pytest
import torch
from torch import Tensor

from fathom.model import head
from fathom.model.attention import normalise
from fathom.model.config import ModelConfig
from fathom.model.moe import combine, dispatch
from fathom.model.rope import Rotary, rotate

ROWS, WIDTH, VOCABULARY = 150, 12, 31


@pytest.fixture
def made() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden rows, head, chosen tokens, weights, in FP64."""
    draw = torch.Generator().manual_seed(3)
    hidden, weights = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((ROWS, WIDTH), (ROWS,)))
    matrix = torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=torch.float64)
    return hidden.requires_grad_(), matrix.requires_grad_(), torch.randint(VOCABULARY, (ROWS,), generator=draw), weights


@pytest.mark.equivalence
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chosen_in_pieces_is_log_softmax(made: tuple[Tensor, ...], temperature: float, monkeypatch) -> None:
    monkeypatch.setattr(head, "CPU_PIECE", 64 * VOCABULARY)  # 150 rows: three pieces, the last not whole
    hidden, matrix, chosen, weights = made
    expected = (hidden @ matrix.mT / temperature).log_softmax(-1)[torch.arange(ROWS), chosen]
    expected_grads = torch.autograd.grad((expected.exp() * weights).sum(), (hidden, matrix))
    found = head.log_probabilities(hidden, matrix, chosen, temperature)
    found_grads = torch.autograd.grad((found.exp() * weights).sum(), (hidden, matrix))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, two in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.equivalence
def test_weighted_sum_makes_its_gradient_in_the_forward_pass(made: tuple[Tensor, ...], monkeypatch) -> None:
    monkeypatch.setattr(head, "CPU_PIECE", 64 * VOCABULARY)
    hidden, matrix, chosen, weights = made
    logp = (hidden @ matrix.mT).log_softmax(-1)[torch.arange(ROWS), chosen]
    expected = torch.autograd.grad(-0.3 * (logp * weights).sum(), (hidden, matrix))
    total = head.weighted_log_probability(hidden, matrix, chosen, weights)
    torch.testing.assert_close(total, (logp * weights).sum(), rtol=0, atol=1e-11)
    for one, two in zip(torch.autograd.grad(-0.3 * total, (hidden, matrix)), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_bf16_head_gathers_its_gradient_in_fp32(made: tuple[Tensor, ...], monkeypatch) -> None:
    """Pieces add to the head's gradient; added in BF16 they would lose what is small against the sum."""
    monkeypatch.setattr(head, "CPU_PIECE", 1)
    monkeypatch.setattr(head, "LEAST_ROWS", 1)  # 150 pieces
    hidden, matrix, chosen, weights = (t.detach() for t in made)
    low = [t.bfloat16().requires_grad_() for t in (hidden, matrix)]
    exact = [t.detach().double().requires_grad_() for t in low]
    grads = []
    for h, m in (low, exact):
        grads.append(torch.autograd.grad(head.weighted_log_probability(h, m, chosen, weights.abs()), m)[0])
    gap = (grads[0].double() - grads[1]).abs().max() / grads[1].abs().max()
    assert gap < 0.01  # one rounding of BF16 is 0.004; 150 additions in BF16 missed by 0.05 and more


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    matrix = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    total = head.weighted_log_probability(hidden, matrix, torch.tensor([0, 0]), torch.ones(2))
    assert float(total.detach()) == pytest.approx(-2e4)
    for grad in torch.autograd.grad(total, (hidden, matrix)):
        assert torch.isfinite(grad).all()


@pytest.mark.equivalence
def test_written_out_gradients_are_those_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(lambda x, w: normalise(x, w, 1e-3), (random(4, 6), random(6)))
    cos_sin = Rotary(ModelConfig(attention="gqa", head_dim=8, rope_theta=100.0))(torch.arange(5), torch.float64)
    for interleave in (True, False):
        assert torch.autograd.gradcheck(lambda x, i=interleave: rotate(x, cos_sin, i), (random(5, 2, 8),))
    expert_TK = torch.tensor([[2, 0], [1, 2], [0, 1]])
    order = expert_TK.flatten().argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(6)
    assert torch.autograd.gradcheck(lambda x: dispatch(x, order // 2, back.view(3, 2)), (random(3, 4),))
    assert torch.autograd.gradcheck(lambda x: combine(x, order // 2, back.view(3, 2)), (random(6, 4),))


def test_norm_of_zeros_is_zero_and_has_a_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = normalise(x, torch.ones(4), 1e-6)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert x.grad is not None and torch.isfinite(x.grad).all()
