"""FP8 blocks against a loop in float64 that knows E4M3 by its bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.model import quant


def e4m3(byte: int) -> float:
    """The number that a byte stands for: sign, four bits of exponent with bias 7, three of fraction; no infinities."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, fraction = byte >> 3 & 0xF, byte & 7
    if exponent == 0xF and fraction == 7:
        return math.nan
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


VALUES = sorted(e4m3(byte) for byte in range(256) if byte & 0x7F != 0x7F)


def test_every_byte_expands_to_its_number() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)
    for number in (bytes_.view(quant.FP8), bytes_[bytes_ & 0x7F != 0x7F].view(quant.FP8)):  # with NaN, and without
        found = quant.expand(number)
        for byte, value in zip(number.view(torch.uint8).tolist(), found.tolist(), strict=True):
            assert value == e4m3(byte) or (math.isnan(value) and byte & 0x7F == 0x7F), byte
    assert quant.expand(torch.empty(0, 3, dtype=quant.FP8)).shape == (0, 3)


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (130, 257), (1, 1), (127, 129), (5, 300)])
def test_blocks_against_the_loop(shape: tuple[int, int], ue8m0: bool) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    weight = torch.randn(shape, generator=generator) * torch.logspace(-3, 2, shape[1])
    number, scale = quant.quantise(weight, ue8m0)
    assert list(scale.shape) == [-(-shape[0] // 128), -(-shape[1] // 128)]
    for p in range(scale.shape[0]):
        for q in range(scale.shape[1]):
            part = (slice(128 * p, 128 * p + 128), slice(128 * q, 128 * q + 128))
            most = max(abs(x) for row in weight[part].tolist() for x in row)
            expected = most / 448
            if ue8m0:
                expected = 2.0 ** math.ceil(math.log2(expected))
                assert math.frexp(float(scale[p, q]))[0] == 0.5
            assert float(scale[p, q]) == pytest.approx(expected, rel=2**-23)
            # each number is the nearest: no other one is closer, but for the rounding of the quotient
            pairs = zip(weight[part].flatten().tolist(), number[part].float().flatten().tolist(), strict=True)
            for exact, found in pairs:
                quotient = exact / float(scale[p, q])
                nearest = min(VALUES, key=lambda value: abs(value - quotient)) if abs(exact) > 0.5 * most else found
                assert abs(found - quotient) <= abs(nearest - quotient) * (1 + 1e-6) + 1e-6
    back = quant.dequantise(number, scale)
    for i in range(shape[0]):
        for j in range(0, shape[1], 37):
            exact = e4m3(int(number.view(torch.uint8)[i, j])) * float(scale[i // 128, j // 128])
            assert float(back[i, j]) == float(torch.tensor(exact, dtype=torch.float64).float())
    assert torch.equal(quant.dequantise(number, scale, torch.bfloat16), back.bfloat16())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(-30, 30), st.booleans(), st.integers(0, 2**31))
def test_the_error_is_at_most_half_a_step(rows: int, columns: int, power: int, ue8m0: bool, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    number, scale = quant.quantise(weight, ue8m0)
    back = quant.dequantise(number, scale)
    wide = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    # 3 bits of fraction: half a step is 2⁻⁴ of a normal number and 2⁻¹⁰ of the scale below 2⁻⁶
    assert bool(((back - weight).abs() <= torch.maximum(weight.abs() * 2**-4, wide * 2**-10) * (1 + 1e-5)).all())
    # a second time nothing changes but the scale's last bit: the largest number of a block is 448
    if not ue8m0:
        again = quant.quantise(back)
        assert torch.equal(again[0].view(torch.uint8), number.view(torch.uint8))


def test_a_block_of_zeros_and_a_power_of_two() -> None:
    weight = torch.zeros(256, 128)
    weight[130, 5] = 448.0
    number, scale = quant.quantise(weight)
    assert scale.tolist() == [[1.0], [1.0]]
    assert torch.equal(quant.dequantise(number, scale), weight)
    _, exact = quant.quantise(weight * 2**-9, ue8m0=True)
    assert exact.tolist() == [[1.0], [2.0**-9]]  # a power of two stays itself, it is not rounded up
    _, above = quant.quantise(weight * 1.0001, ue8m0=True)
    assert above.tolist() == [[1.0], [2.0]]
