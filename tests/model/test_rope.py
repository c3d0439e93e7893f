"""Rotary frequencies: the published numbers, a float64 loop, and how far FP32 angles are from exact ones."""

from __future__ import annotations

import math

import pytest
import torch
from made_models import CONFIGS, sharp
from made_reference import Reference

from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.rope import Rotary, frequencies, rotate

YARN = RopeScaling(factor=40, original_max_position_embeddings=4096)

# model.md §2.3: DeepSeek's frequencies of 64 rotary channels
PUBLISHED = {9: 0.0749894, 10: 0.0562341, 11: 0.0390069, 16: 0.0055, 22: 1.778279e-4, 23: 3.333804e-5, 31: 3.333804e-6}


def test_yarn_is_the_published_table() -> None:
    found = frequencies(64, 10000.0, YARN, torch.float64)
    assert found.shape == (32,)
    for i, expected in PUBLISHED.items():
        assert found[i].item() == pytest.approx(expected, rel=1e-6)
    plain = frequencies(64, 10000.0, None, torch.float64)
    assert torch.equal(found[:11], plain[:11])  # up to channel 10 nothing is stretched
    assert torch.allclose(found[23:], plain[23:] / 40, rtol=1e-15, atol=0)
    assert (found[11:23] < plain[11:23]).all() and (found[11:23] > plain[11:23] / 40).all()


@pytest.mark.parametrize(("mscale", "m", "scale"), [(0.707, 1.260804, 0.1147214), (1.0, 1.368888, 0.1352338)])
def test_softmax_scale_is_the_published_one(mscale: float, m: float, scale: float) -> None:
    yarn = YARN.model_copy(update={"mscale": mscale, "mscale_all_dim": mscale})
    assert yarn.m(mscale) == pytest.approx(m, abs=5e-7)
    assert yarn.rotary_factor == 1.0
    config = ModelConfig(qk_nope_head_dim=128, qk_rope_head_dim=64, rope_scaling=yarn)
    assert config.softmax_scale == pytest.approx(scale, abs=5e-8)
    assert config.model_copy(update={"rope_scaling": None}).softmax_scale == pytest.approx(192**-0.5)


def test_grouped_attention_is_stretched_on_the_angles_only() -> None:
    config = ModelConfig(attention="gqa", head_dim=16, rope_interleave=False, rope_scaling=YARN)
    assert config.softmax_scale == 0.25
    cos, sin = Rotary(config)(torch.tensor([0, 7]), torch.float64)
    assert torch.allclose(cos**2 + sin**2, torch.full((2, 8), (0.1 * math.log(40) + 1) ** 2, dtype=torch.float64))


@pytest.mark.parity
@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.rope_scaling])
def test_stretched_frequencies_are_the_loop(name: str) -> None:
    config = CONFIGS[name]
    reference = Reference(sharp(config))
    found = frequencies(config.rotary_channels, config.rope_theta, config.rope_scaling, torch.float64)
    expected = [reference.frequency(i, config.rotary_channels) for i in range(config.rotary_channels // 2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    plain = frequencies(config.rotary_channels, config.rope_theta, None, torch.float64)
    ratio = plain / found
    assert ratio.min() < 1.01 and ratio.max() > config.rope_scaling.factor * 0.99  # both ends of the ramp are there


def test_fp32_angles_are_close_to_exact_ones() -> None:
    """A phase of 160,000 rounds to 2⁻⁷ in FP32, as it does where the published models were trained."""
    config = ModelConfig(qk_rope_head_dim=64)
    positions = torch.tensor([0, 1, 63, 1023, 8191, 163839])
    low, exact = (Rotary(config)(positions, dtype) for dtype in (torch.bfloat16, torch.float64))
    for a, b in zip(low, exact, strict=True):
        assert a.dtype == torch.float32
        assert ((a - b).abs() <= 1e-7 + positions[:, None] * 2.0**-22).all()


def test_rotation_keeps_lengths_and_turns_by_the_difference_of_positions() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 1, 16, dtype=torch.float64, generator=draw) for _ in range(2))
    for interleave in (True, False):
        rotary = Rotary(ModelConfig(attention="gqa", head_dim=16, rope_interleave=interleave))

        def at(vector: torch.Tensor, position: int, i: bool = interleave, r: Rotary = rotary) -> torch.Tensor:
            return rotate(vector, r(torch.tensor([position]), torch.float64), i)

        assert torch.allclose(at(x, 9).norm(), x.norm())
        assert torch.allclose((at(x, 9) * at(y, 4)).sum(), (at(x, 1005) * at(y, 1000)).sum())


@pytest.mark.parametrize(("change", "words"), [
    ({"beta_slow": 40.0}, "beta_slow=40.0: must be less than beta_fast=32.0"),
    ({"type": "llama3", "low_freq_factor": 4.0}, "low_freq_factor=4.0: must be less than high_freq_factor=4.0"),
])
def test_a_scaling_that_makes_no_ramp_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RopeScaling(**{**YARN.model_dump(), **change})
