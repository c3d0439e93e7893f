"""Attention kernels under the interpreter beside their twins, the twins beside a loop in float64, and mutants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_caches import attended, gap, paged
from torch import Tensor

from fathom.model.kernels import decode, latent_fp8, prefill

Call = Callable[..., Any]
SCALE = 0.3  # with entries of deviation 1 and widths of tens: weights far from even
# FP32: orders of sums. BF16: the interpreter cuts off what does not fit where a GPU rounds, at most 2⁻⁷ of a number;
# FP16 rounds
BARS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
TWINS = 5  # times as much for twins in 16 bits: their scores, sums of tens, are rounded to the type


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# heads, latent, rotary, block, lengths, fixed split
LATENT = [
    (4, 32, 16, 16, [1, 16, 17, 40], None),  # one token, a whole block, one more, a partial one
    (16, 24, 8, 8, [100], 64),  # one row; widths that are no powers of two
    (128, 64, 16, 16, [33], None),
    (3, 32, 16, 16, [1, 300, 64, 65], 64),  # lengths far apart: shares that are never written
    (70, 16, 16, 16, [5, 3], None),  # two tiles of heads, the second almost empty
]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("case", LATENT)
def test_latent_decoding(interpreted: Call, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    heads, latent, rotary, block, lengths, split = case
    pool, table, _ = paged(lengths, 1, block, latent + rotary, 1, spare=2, dtype=dtype)
    q, length = drawn(len(lengths), heads, latent + rotary, seed=2, dtype=dtype), torch.tensor(lengths)
    found = interpreted("decode", "paged_latent_decode", q, pool, table, length, latent, SCALE, split)
    assert found.dtype == dtype
    expected = decode.plain_latent_decode(q.double(), pool.double(), table, length, latent, SCALE)
    assert gap(found, expected) < BARS[dtype]
    assert gap(decode.paged_latent_decode(q, pool, table, length, latent, SCALE), expected) < TWINS * BARS[dtype]


# heads, groups, width, block, lengths, fixed split
GROUPED = [
    (4, 4, 32, 16, [1, 16, 17, 40], None),  # every head has its own keys
    (6, 2, 24, 16, [1, 200], 64),
    (16, 2, 16, 32, [32, 64, 65], 64),  # eight heads of one group
    (9, 3, 64, 16, [31], None),
    (16, 8, 16, 16, [3, 16], None),
    (34, 1, 16, 16, [20, 1], None),  # more heads of a group than 32
]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("case", GROUPED)
def test_grouped_decoding(interpreted: Call, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    heads, groups, width, block, lengths, split = case
    keys, table, _ = paged(lengths, groups, block, width, 3, spare=1, dtype=dtype)
    values = paged(lengths, groups, block, width, 3, spare=1, dtype=dtype)[0].flip(-1)
    q, length = drawn(len(lengths), heads, width, seed=4, dtype=dtype), torch.tensor(lengths)
    found = interpreted("decode", "paged_grouped_decode", q, keys, values, table, length, SCALE, split)
    assert found.dtype == dtype
    expected = decode.plain_grouped_decode(q.double(), keys.double(), values.double(), table, length, SCALE)
    assert gap(found, expected) < BARS[dtype]
    assert gap(decode.paged_grouped_decode(q, keys, values, table, length, SCALE), expected) < TWINS * BARS[dtype]


def test_decoding_twins_are_the_loop() -> None:
    lengths, latent = [1, 5, 8, 11], 6
    pool, table, rows = paged(lengths, 1, 4, 10, 5, dtype=torch.float64)
    q, length = drawn(4, 3, 10, seed=6).double(), torch.tensor(lengths)
    found = decode.paged_latent_decode(q, pool, table, length, latent, SCALE)
    for row, entries in enumerate(rows):
        for head in range(3):
            expected = attended(q[row, head], entries[:, 0], entries[:, 0, :latent], SCALE)
            assert found[row, head].tolist() == pytest.approx(expected, abs=1e-12)
    keys, table, k_rows = paged(lengths, 2, 4, 10, 7, dtype=torch.float64)
    values, _, v_rows = paged(lengths, 2, 4, 10, 7, dtype=torch.float64)
    q = drawn(4, 6, 10, seed=8).double()
    found = decode.paged_grouped_decode(q, keys, -values, table, length, SCALE)
    for row in range(4):
        for head in range(6):
            expected = attended(q[row, head], k_rows[row][:, head // 3], -v_rows[row][:, head // 3], SCALE)
            assert found[row, head].tolist() == pytest.approx(expected, abs=1e-12)


def test_tables_and_cells_are_the_engines() -> None:
    """What `Layout.rows` says, the kernels' functions understand: blocks, lengths, and where an entry goes."""
    from fathom.model.attention import grouped_rows, latent_rows
    from fathom.model.config import ModelConfig
    from fathom.model.kernels import fused
    from fathom.model.layout import Layout, Pages

    tables, lengths = [[3, 1], [2], [3, 1]], [7, 4, 6]
    for kind in ("mla", "gqa"):
        config = ModelConfig(attention=kind, num_hidden_layers=1, kv_lora_rank=24, qk_rope_head_dim=8,
                             num_attention_heads=4, num_key_value_heads=2, head_dim=16)
        pages = Pages(config, 4, 4, torch.float32, "cpu")
        for part, stored in enumerate(pages.layers[0]):
            stored.copy_(drawn(*stored.shape, seed=part))
        layout = Layout.rows(pages, tables, lengths)
        rows = layout.decoding
        assert rows is not None and layout.cells is not None
        if kind == "mla":
            q, pool = drawn(3, 4, 32, seed=5), pages.layers[0][0]
            found = decode.paged_latent_decode(q, pool, rows.table_BN, rows.length_B, 24, SCALE)
            assert gap(found, latent_rows(q, layout, 0, 24, SCALE)) < 1e-6
            entry, straight = drawn(3, 32, seed=6), (torch.ones(3, 4), torch.zeros(3, 4))
            fused.write_latent(entry, torch.ones(24), 1e-6, straight, True, pool, layout.cells)
            assert torch.equal(layout.recall(0, layout.cells)[0][:, 24:], entry[:, 24:])
        else:
            q = drawn(3, 4, 16, seed=5)
            found = decode.paged_grouped_decode(q, *pages.layers[0], rows.table_BN, rows.length_B, SCALE)
            assert gap(found, grouped_rows(q, layout, 0, 2, SCALE)) < 1e-6


def test_rows_of_one_sequence(interpreted: Call) -> None:
    """Several tokens of one sequence are rows that share a table and see one more each: as in prefill."""
    pool, table, rows = paged([20], 1, 16, 48, 9)
    q, length = drawn(3, 4, 48, seed=10), torch.tensor([18, 19, 20])
    found = interpreted("decode", "paged_latent_decode", q, pool, table.expand(3, -1), length, 32, SCALE)
    k, v = rows[0].expand(-1, 4, -1), rows[0][..., :32].expand(-1, 4, -1)
    expected = prefill.plain_packed_prefill(q, k, v, torch.tensor([0, 3]), torch.tensor([0, 20]), SCALE)
    assert gap(found, expected) < BARS[torch.float32]


def test_a_fixed_split_makes_rows_independent_of_the_batch(interpreted: Call) -> None:
    lengths = [70, 1, 200, 64, 129]
    pool, table, _ = paged(lengths, 1, 16, 48, 11, spare=3)
    q, length = drawn(5, 4, 48, seed=12), torch.tensor(lengths)
    together = interpreted("decode", "paged_latent_decode", q, pool, table, length, 32, SCALE, 64)
    for row, tokens in enumerate(lengths):
        narrow = table[row: row + 1, : -(-tokens // 16)].contiguous()
        alone = interpreted("decode", "paged_latent_decode", q[row: row + 1], pool, narrow, length[row: row + 1], 32,
                            SCALE, 64)
        assert torch.equal(alone[0], together[row]), row


def test_latents_in_bytes(interpreted: Call) -> None:
    lengths, latent = [1, 16, 40], 136  # one scale for 128 channels and one for the other 8
    _, table, rows = paged(lengths, 1, 16, latent + 16, 13)
    pool = torch.zeros(int(table.max()) + 1, 1, 16, latent_fp8.entry_bytes(latent, 16), dtype=torch.uint8)
    pool[:] = 0x7F  # NaN in E4M3, wherever nothing is written
    for row, entries in enumerate(rows):
        for at, entry in enumerate(latent_fp8.quantise_entries(entries, latent)):
            pool[table[row, at // 16], :, at % 16] = entry
    length = torch.tensor(lengths)
    for dtype in (torch.float32, torch.bfloat16):
        q = drawn(3, 4, latent + 16, seed=14, dtype=dtype)
        found = interpreted("decode", "paged_latent_decode", q, pool, table, length, latent, 0.1)
        expected = decode.plain_latent_decode(q.double(), pool, table, length, latent, 0.1)
        assert gap(found, expected) < BARS[dtype]


def test_entries_in_bytes_against_the_loop() -> None:
    entries = drawn(7, 576, seed=15) * torch.logspace(-4, 2, 576)
    entries[3, 128:256] = 0
    packed = latent_fp8.quantise_entries(entries, 512)
    assert packed.shape == (7, 656)
    back = latent_fp8.dequantise_entries(packed, 512, torch.float32)
    for entry, byte_row, again in zip(entries, packed, back, strict=True):
        for q in range(4):
            part = entry[128 * q: 128 * q + 128].tolist()
            scale = byte_row[512 + 4 * q: 516 + 4 * q].view(torch.float32).item()
            most = max(map(abs, part))
            assert scale == pytest.approx(most / 448 if most else 1.0, rel=1e-6)
            for x, y in zip(part, again[128 * q: 128 * q + 128].tolist(), strict=True):
                # 3 bits of fraction, down to the smallest step of 2⁻⁹
                assert abs(x - y) <= max(abs(x) * 2**-4, scale * 2**-10) * 1.001
    assert torch.equal(back[:, 512:], entries[:, 512:].bfloat16().float())


# heads, groups, width, block, new tokens, past tokens
PAGED = [
    (6, 2, 24, 16, [1, 16, 37], [0, 16, 3]),
    (4, 4, 32, 8, [130], [0]),  # more queries than one tile
    (8, 1, 16, 32, [1, 1, 2], [31, 32, 64]),
]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("case", PAGED)
def test_paged_prefill(interpreted: Call, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    heads, groups, width, block, new, past = case
    lengths = [a + b for a, b in zip(new, past, strict=True)]
    keys, table, _ = paged(lengths, groups, block, width, 16, spare=1, dtype=dtype)
    values = keys.flip(-1)
    q, start = drawn(sum(new), heads, width, seed=17, dtype=dtype), torch.tensor([0, *new]).cumsum(0)
    args = (table, start, torch.tensor(past), SCALE)
    found = interpreted("prefill", "paged_prefill", q, keys, values, *args, max(new))
    expected = prefill.plain_paged_prefill(q.double(), keys.double(), values.double(), *args)
    assert gap(found, expected) < BARS[dtype]
    assert gap(prefill.paged_prefill(q, keys, values, *args, max(new)), expected) < TWINS * BARS[dtype]


# heads, groups, key width, value width, new tokens, past tokens
PACKED = [
    (2, 2, 48, 32, [1, 16, 37], [0, 16, 70]),  # keys wider than values, in two parts
    (4, 4, 192, 128, [20, 3], [0, 0]),
    (2, 1, 64, 64, [130], [3]),
    (2, 2, 40, 24, [2, 65], [64, 0]),  # no powers of two
]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("case", PACKED)
def test_packed_prefill(interpreted: Call, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    heads, groups, width, v_width, new, past = case
    lengths = [a + b for a, b in zip(new, past, strict=True)]
    q, k, v = (drawn(n, h, c, seed=seed, dtype=dtype) for n, h, c, seed in (
        (sum(new), heads, width, 18), (sum(lengths), groups, width, 19), (sum(lengths), groups, v_width, 20)))
    bounds = torch.tensor([0, *new]).cumsum(0), torch.tensor([0, *lengths]).cumsum(0)
    found = interpreted("prefill", "packed_prefill", q, k, v, *bounds, SCALE, max(new))
    expected = prefill.plain_packed_prefill(q.double(), k.double(), v.double(), *bounds, SCALE)
    assert gap(found, expected) < BARS[dtype]
    assert gap(prefill.packed_prefill(q, k, v, *bounds, SCALE, max(new)), expected) < TWINS * BARS[dtype]


def test_prefill_twins_are_the_loop() -> None:
    new, past = [1, 4, 3], [0, 2, 6]
    lengths = [a + b for a, b in zip(new, past, strict=True)]
    keys, table, k_rows = paged(lengths, 2, 4, 10, 21, dtype=torch.float64)
    q, start = drawn(8, 4, 10, seed=22).double(), torch.tensor([0, *new]).cumsum(0)
    found = prefill.paged_prefill(q, keys, -keys, table, start, torch.tensor(past), SCALE, 4)
    k, kv_start = torch.cat(k_rows), torch.tensor([0, *lengths]).cumsum(0)
    assert torch.equal(prefill.packed_prefill(q, k, -k, start, kv_start, SCALE, 4), found)
    for s in range(3):
        for i in range(new[s]):
            for head in range(4):
                seen = k_rows[s][: past[s] + i + 1, head // 2]
                expected = attended(q[start[s] + i, head], seen, -seen, SCALE)
                assert found[start[s] + i, head].tolist() == pytest.approx(expected, abs=1e-12)


def test_prefill_in_chunks_is_prefill_at_once(interpreted: Call) -> None:
    keys, table, _ = paged([90], 2, 16, 32, 23)
    q = drawn(90, 4, 32, seed=24)

    def part(first: int, last: int) -> Tensor:
        bounds = torch.tensor([0, last - first]), torch.tensor([first])
        found: Tensor = interpreted("prefill", "paged_prefill", q[first:last], keys, keys, table, *bounds, SCALE, 90)
        return found

    assert torch.equal(torch.cat([part(0, 33), part(33, 34), part(34, 90)]), part(0, 90))


MUTANTS = {
    "latent: scale dropped": (
        "decode", "tl.dot(q_MP, tl.trans(k_NP), score_MN, input_precision=\"ieee\") * scale",
        "tl.dot(q_MP, tl.trans(k_NP), score_MN, input_precision=\"ieee\") * 1.4426950408889634"),
    "latent: its own token unseen": (
        "decode", "last = tl.minimum(tl.load(length + row).to(tl.int32), first + split)",
        "last = tl.minimum(tl.load(length + row).to(tl.int32) - 1, first + split)"),
    "latent: rotary part dropped": ("decode", "tl.dot(q_MP, tl.trans(k_NP)", "tl.dot(q_MP * 0, tl.trans(k_NP)"),
    "latent: sums not carried over": ("decode", "z_MR * keep_M[:, None]", "z_MR"),
    "combine: shares weighed alike": ("decode", "tl.exp2(log - new)\n", "log * 0 + 1\n"),
    "grouped: all read the first group": ("decode", "group * pool_group + (at_N", "(at_N"),
    "prefill: scale dropped": ("prefill", "score_MN * scale", "score_MN * 1.4426950408889634"),
    "prefill: one token ahead is seen": ("prefill", "<= position_M[:, None]", "<= position_M[:, None] + 1"),
    "prefill: past forgotten": ("prefill", "position_M = earlier + row_M", "position_M = row_M"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_miss_the_bar(interpreted: Call, tmp_path: Path, name: str) -> None:
    module, right, wrong = MUTANTS[name]
    text = Path(decode.__file__).with_name(f"{module}.py").read_text()
    assert right in text
    source = tmp_path / f"mutant_{module}.py"
    source.write_text(text.replace(right, wrong))
    lengths = [17, 200]
    if name.startswith("grouped"):
        pool, table, _ = paged(lengths, 2, 16, 48, 25)
        args: tuple[Any, ...] = (drawn(2, 4, 48, seed=26), pool, pool, table, torch.tensor(lengths), SCALE, 64)
        expected, function = decode.plain_grouped_decode(*args[:-1]), "paged_grouped_decode"
    elif module == "decode":
        pool, table, _ = paged(lengths, 1, 16, 48, 25)
        q, length = drawn(2, 4, 48, seed=26), torch.tensor(lengths)
        args = (q, pool, table, length, 32, SCALE, 64)
        expected, function = decode.plain_latent_decode(*args[:-1]), "paged_latent_decode"
    else:
        pool, table, _ = paged(lengths, 2, 16, 48, 25)
        q, start = drawn(19, 4, 48, seed=26), torch.tensor([0, 3, 19])
        args = (q, pool, pool, table, start, torch.tensor([14, 184]), SCALE, 16)
        expected, function = prefill.plain_paged_prefill(*args[:-1]), "paged_prefill"
    assert gap(interpreted(module, function, *args), expected) < BARS[torch.float32]
    found = interpreted(module, function, *args, source=source)
    print(f"{name}: {gap(found, expected):.1e}")
    assert gap(found, expected) > 10 * BARS[torch.float32]
