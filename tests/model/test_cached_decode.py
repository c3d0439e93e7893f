"""Decoding from the cache, token by token, against the full forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made_models import CONFIGS, DTYPES, MLA_LITE, MLA_MOE, TOLERANCE, Slots, assert_within, deviation, sharp, texts
from torch import Tensor

from fathom.model.attention import LatentAttention
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout, Pages
from fathom.model.transformer import Transformer

PROMPTS = (7, 1, 12, 4)  # several lengths in one cache
STEPS = 9


def full(model: Transformer, sequences: list[list[int]]) -> list[Tensor]:
    """Logits of every position, each sequence alone."""
    with torch.no_grad():
        return [model.logits(model(torch.tensor(s), Layout.packed([len(s)]))) for s in sequences]


@torch.no_grad()
def cached(
    model: Transformer, sequences: list[list[int]],
    change: Callable[[Transformer, Pages, Layout, list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Logits from the prompt's last position on: prefill, then one token per sequence and step."""
    cache = Slots(model.config, len(PROMPTS), max(PROMPTS) + STEPS, model.embed_tokens.weight.dtype)
    slots = (2, 0, 3, 1)  # the cache's order is not the prompts'
    layout = cache.fresh(PROMPTS, slots)
    prompts = [s[:n] for s, n in zip(sequences, PROMPTS, strict=True)]
    raw: list[Tensor] = []  # what the latent norms were given
    norms = [block.self_attn.kv_a_layernorm for block in model.layers if isinstance(block.self_attn, LatentAttention)]
    hooks = [norm.register_forward_pre_hook(lambda _, given: raw.append(given[0])) for norm in norms]
    hidden = model(torch.tensor([t for p in prompts for t in p]), layout)
    for hook in hooks:
        hook.remove()
    ends = torch.tensor(PROMPTS).cumsum(0) - 1
    out = [[row] for row in model.logits(hidden[ends])]
    if change:
        change(model, cache.pages, layout, raw)
    for step in range(STEPS):
        tokens = [0] * len(slots)
        for s, slot in enumerate(slots):
            tokens[slot] = sequences[s][PROMPTS[s] + step]
        logits = model.logits(model(torch.tensor(tokens), cache.step()))
        for s, slot in enumerate(slots):
            out[s].append(logits[slot])
    return [torch.stack(rows) for rows in out]


def worst(model: Transformer, config: ModelConfig, change: Callable | None = None) -> tuple[Tensor, Tensor]:
    sequences = texts(config, *(n + STEPS for n in PROMPTS))
    expected = [rows[n - 1:] for rows, n in zip(full(model, sequences), PROMPTS, strict=True)]
    return torch.cat(cached(model, sequences, change)), torch.cat(expected)


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_is_the_full_forward_pass(name: str, dtype: torch.dtype) -> None:
    """For latent attention this is absorbed = expanded: prefill expands, decoding reads the latents as they are."""
    model = sharp(CONFIGS[name], dtype=dtype)
    found, expected = worst(model, CONFIGS[name])
    assert expected.std() >= 1
    assert_within(found, expected, TOLERANCE[dtype])


def raw_latent(model: Transformer, pages: Pages, layout: Layout, raw: list[Tensor]) -> None:
    """The cache as if it had been filled before `kv_a_layernorm`."""
    for latent, (stored,) in zip(raw, pages.layers, strict=False):
        stored.view(-1, stored.shape[-1])[layout.cells, : latent.shape[1]] = latent


def half_rope(model: Transformer, _pages: Pages, _layout: Layout, _raw: list[Tensor]) -> None:
    for block in model.layers:
        block.self_attn.interleave = not block.self_attn.interleave


def normalised_key(model: Transformer, pages: Pages, layout: Layout, _raw: list[Tensor]) -> None:
    for block, (stored,) in zip(model.layers, pages.layers, strict=False):
        rows = stored.view(-1, stored.shape[-1])[:, block.self_attn.latent:]
        rows[layout.cells] = rows[layout.cells] / rows[layout.cells].pow(2).mean(-1, keepdim=True).sqrt()


def scale_of_latent(model: Transformer, _pages: Pages, _layout: Layout, _raw: list[Tensor]) -> None:
    """The width of what is multiplied, latent and rotary, taken for the width of a head."""
    for block in model.layers:
        attention = block.self_attn
        assert isinstance(attention, LatentAttention)
        attention.scale = (attention.latent + attention.rope) ** -0.5


@pytest.mark.equivalence
@pytest.mark.parametrize("config", [MLA_MOE, MLA_LITE], ids=["query latent", "no query latent"])
@pytest.mark.parametrize("mutant", [raw_latent, half_rope, normalised_key, scale_of_latent])
def test_mistakes_in_decoding_miss_by_far(mutant: Callable, config: ModelConfig) -> None:
    model = sharp(config)
    found, expected = worst(model, config, mutant)
    assert deviation(found, expected) >= 10 * TOLERANCE[torch.float32]


def test_prefill_alone_does_not_disturb_other_slots() -> None:
    """Prompts prefilled in two passes fill the cache as one pass does."""
    model, sequences = sharp(MLA_MOE), texts(MLA_MOE, *PROMPTS)
    caches = [Slots(MLA_MOE, 4, 16, torch.float64) for _ in range(2)]
    with torch.no_grad():
        model(torch.tensor([t for s in sequences for t in s]), caches[0].fresh(PROMPTS))
        for part in (slice(0, 2), slice(2, 4)):
            some = sequences[part]
            layout = caches[1].fresh([len(s) for s in some], range(4)[part])
            model(torch.tensor([t for s in some for t in s]), layout)
    assert caches[0].lengths == caches[1].lengths
    for one, two in zip(caches[0].pages.layers, caches[1].pages.layers, strict=True):
        assert_within(two[0], one[0], 1e-12)  # the same products, perhaps in blocks of other sizes


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_in_pieces_are_prompts_at_once(name: str, dtype: torch.dtype) -> None:
    """The second half of every prompt after the first, from what the cache holds of it."""
    model = sharp(CONFIGS[name], dtype=dtype)
    first, second = (5, 1, 9, 4), (4, 6, 1, 3)
    sequences = texts(model.config, *(a + b for a, b in zip(first, second, strict=True)))
    slots = Slots(model.config, 4, 16, dtype)
    with torch.no_grad():
        model(torch.tensor([t for s, n in zip(sequences, first, strict=True) for t in s[:n]]), slots.fresh(first))
        found = model.logits(model(
            torch.tensor([t for s, n in zip(sequences, first, strict=True) for t in s[n:]]), slots.onward(second)))
    expected = torch.cat([rows[n:] for rows, n in zip(full(model, sequences), first, strict=True)])
    assert_within(found, expected, TOLERANCE[dtype])


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_positions_in_pieces_are_positions_at_once(name: str) -> None:
    """Attention piece by piece, for rows of several lengths, and rows that share a table."""
    model = sharp(CONFIGS[name])
    slots = Slots(model.config, 4, 24, torch.float64)
    prompts = texts(model.config, *PROMPTS)
    with torch.no_grad():
        model(torch.tensor([t for p in prompts for t in p]), slots.fresh(PROMPTS))
        tables = [slots.tables[0], slots.tables[0], slots.tables[1], slots.tables[2], slots.tables[3]]
        lengths = [8, 9, 2, 13, 5]
        layouts = [Layout.rows(slots.pages, tables, lengths, piece) for piece in (0, 2, 7, 16)]
        layouts.append(Layout.rows(slots.pages, tables, lengths, split=True))
        assert layouts[-1].decoding is not None
        assert [(part.begin, part.end) for part in layouts[-1].decoding.parts] == [(0, 3), (3, 5)]
        found = [model.logits(model(torch.tensor([3, 4, 5, 6, 7]), layout)) for layout in layouts]
    sequences = [[*prompts[0], 3, 4], [*prompts[1], 5], [*prompts[2], 6], [*prompts[3], 7]]
    whole = full(model, sequences)
    expected = torch.stack([whole[0][-2], whole[0][-1], whole[1][-1], whole[2][-1], whole[3][-1]])
    for rows in found:
        assert_within(rows, expected, TOLERANCE[torch.float64])


def test_copied_blocks_carry_their_tokens() -> None:
    """A block copied for another table: both go on from the same past, each with its own token."""
    model, (prompt,) = sharp(MLA_LITE), texts(MLA_LITE, 8)
    slots = Slots(MLA_LITE, 2, 9, torch.float64)
    with torch.no_grad():
        model(torch.tensor(prompt), slots.fresh([8], [0]))
        slots.pages.copy(slots.tables[0], slots.tables[1])
        layout = Layout.rows(slots.pages, slots.tables, [9, 9])
        logits = model.logits(model(torch.tensor([3, 4]), layout))
    expected = full(model, [[*prompt, 3], [*prompt, 4]])
    assert_within(logits, torch.stack([rows[-1] for rows in expected]), TOLERANCE[torch.float64])
