"""Decoding from the cache, token by token, against the full forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made_models import CONFIGS, DTYPES, MLA_LITE, MLA_MOE, TOLERANCE, assert_within, deviation, sharp, texts
from torch import Tensor

from fathom.model.attention import LatentAttention
from fathom.model.config import ModelConfig
from fathom.model.layout import Cache, Layout
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
    change: Callable[[Transformer, Cache, Layout, list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Logits from the prompt's last position on: prefill, then one token per sequence and step."""
    cache = Cache(model.config, len(PROMPTS), max(PROMPTS) + STEPS, model.embed_tokens.weight.dtype, "cpu")
    slots = (2, 0, 3, 1)  # the cache's order is not the prompts'
    layout = Layout.prefill(PROMPTS, cache, slots)
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
        change(model, cache, layout, raw)
    for step in range(STEPS):
        tokens = [0] * len(slots)
        for s, slot in enumerate(slots):
            tokens[slot] = sequences[s][PROMPTS[s] + step]
        logits = model.logits(model(torch.tensor(tokens), Layout.decode(cache)))
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


def raw_latent(_model: Transformer, cache: Cache, layout: Layout, raw: list[Tensor]) -> None:
    """The cache as if it had been filled before `kv_a_layernorm`."""
    for latent, (stored,) in zip(raw, cache.layers, strict=True):
        stored[(*layout.cells, slice(latent.shape[1]))] = latent


def half_rope(model: Transformer, _cache: Cache, _layout: Layout, _raw: list[Tensor]) -> None:
    for block in model.layers:
        block.self_attn.interleave = not block.self_attn.interleave


def normalised_key(model: Transformer, cache: Cache, layout: Layout, _raw: list[Tensor]) -> None:
    for block, (stored,) in zip(model.layers, cache.layers, strict=True):
        latent = block.self_attn.latent
        keys = (*layout.cells, slice(latent, None))
        stored[keys] = stored[keys] / stored[keys].pow(2).mean(-1, keepdim=True).sqrt()


def scale_of_latent(model: Transformer, _cache: Cache, _layout: Layout, _raw: list[Tensor]) -> None:
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
    caches = [Cache(MLA_MOE, 4, 16, torch.float64, "cpu") for _ in range(2)]
    with torch.no_grad():
        model(torch.tensor([t for s in sequences for t in s]), Layout.prefill(PROMPTS, caches[0], range(4)))
        for part in (slice(0, 2), slice(2, 4)):
            some = sequences[part]
            layout = Layout.prefill([len(s) for s in some], caches[1], range(4)[part])
            model(torch.tensor([t for s in some for t in s]), layout)
    assert torch.equal(caches[0].lengths, caches[1].lengths)
    for one, two in zip(caches[0].layers, caches[1].layers, strict=True):
        assert_within(two[0], one[0], 1e-12)  # the same products, perhaps in blocks of other sizes


def test_kept_slots_carry_their_tokens() -> None:
    """`keep` copies a prompt's slot for a group and drops what is finished, without changing what is decoded."""
    model, sequences = sharp(MLA_LITE), texts(MLA_LITE, 5, 8)
    cache = Cache(MLA_LITE, 2, 12, torch.float64, "cpu")
    before = cache.bytes
    with torch.no_grad():
        model(torch.tensor(sequences[0] + sequences[1]), Layout.prefill((5, 8), cache, (0, 1)))
        cache.keep(torch.tensor([1, 1, 0]))
        assert cache.lengths.tolist() == [8, 8, 5]
        assert cache.bytes == before // 2 * 3
        logits = model.logits(model(torch.tensor([3, 4, 3]), Layout.decode(cache)))
    expected = full(model, [[*sequences[1], 3], [*sequences[1], 4], [*sequences[0], 3]])
    assert_within(logits, torch.stack([rows[-1] for rows in expected]), TOLERANCE[torch.float64])
