"""Published models by name: their totals as published, their rotary constants, and what a wrong name is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fathom.core.errors import UsageError
from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.cost import cost
from fathom.model.presets import OWN, PRESETS, PUBLISHED, preset
from fathom.model.template import FAMILIES

CONFIGS = Path(os.environ.get("FATHOM_SHARED_DATA", "/work/shared/data")) / "deepseek_configs"

# total parameters as model cards and safetensors' own counts state them; tied heads count once
TOTALS = {
    "deepseek-v2-lite": 15_706_484_224, "deepseek-coder-v2-lite-instruct": 15_706_484_224,
    "deepseek-v2": 235_741_434_880, "deepseek-v2.5": 235_741_434_880, "deepseek-coder-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200, "deepseek-v3.1": 671_026_419_200, "deepseek-r1": 671_026_419_200,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000, "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "deepseek-r1-distill-qwen-14b": 14_770_033_664, "deepseek-r1-distill-qwen-32b": 32_763_876_352,
    "deepseek-r1-distill-llama-8b": 8_030_261_248, "deepseek-r1-distill-llama-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496, "llama-3.1-405b": 405_853_388_800, "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824, "llama-3.3-70b-instruct": 70_553_706_496,
    "qwen2-0.5b": 494_032_768, "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648, "qwen2.5-math-7b": 7_615_616_512, "qwen2.5-coder-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264, "qwen3-4b-instruct-2507": 4_022_468_096,
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize(("name", "total"), TOTALS.items(), ids=TOTALS)
def test_totals_are_the_published_ones(name: str, total: int) -> None:
    assert cost(PRESETS[name]).parameters == total


def test_every_shape_has_a_published_total() -> None:
    """Each preset is in the list above or has the parameters of one that is."""
    known = set(TOTALS.values())
    assert [name for name, p in PUBLISHED.items() if cost(p.config).parameters not in known] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_of_each(name: str) -> None:
    published = PUBLISHED[name]
    family = {"deepseek-v2": "deepseek_v2", "deepseek-coder": "deepseek_v2", "deepseek-v3": "deepseek_v3",
              "deepseek-r1-distill-q": "qwen2", "deepseek-r1-distill-l": "llama", "deepseek-r1": "deepseek_v3",
              "deepseek-moe": "deepseek", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm2": "llama"}
    assert published.config.family == next(kind for start, kind in family.items() if name.startswith(start))
    assert name == name.lower()
    assert published.template in FAMILIES
    if published.context > published.config.max_position_embeddings:
        assert "YaRN" in published.note, "the claim needs what the config leaves out"


@pytest.mark.parametrize(("names", "mscale", "m", "squared", "scale"), [
    ("deepseek-v2-lite deepseek-coder-v2-lite deepseek-v2", 0.707, 1.260804, 1.589626, 0.1147214),
    ("deepseek-v3 deepseek-r1 deepseek-v3.1 deepseek-v2.5 deepseek-coder-v2", 1.0, 1.368888, 1.873854, 0.1352338),
])
def test_yarn_of_deepseek(names: str, mscale: float, m: float, squared: float, scale: float) -> None:
    for name in names.split():
        config = PRESETS[name]
        scaling = config.rope_scaling
        assert isinstance(scaling, RopeScaling)
        assert scaling.m(mscale) == pytest.approx(m, abs=5e-7)
        assert scaling.softmax_factor == pytest.approx(squared, abs=5e-7)
        assert config.softmax_scale == pytest.approx(scale, abs=5e-8)
        assert scaling.rotary_factor == 1.0, "1 in every release"
        assert config.max_position_embeddings == scaling.factor * scaling.original_max_position_embeddings == 163840


@pytest.mark.parametrize(("name", "factor"), [
    ("llama-3-8b", None), ("llama-3.1-8b", 8), ("llama-3.1-405b", 8), ("llama-3.2-1b", 32), ("llama-3.2-3b", 32),
    ("llama-3.3-70b-instruct", 8), ("deepseek-r1-distill-llama-8b", 8)])
def test_rotary_scaling_of_llama(name: str, factor: float | None) -> None:
    scaling = PRESETS[name].rope_scaling
    if factor is None:
        assert scaling is None and PRESETS[name].max_position_embeddings == 8192
        return
    assert scaling is not None and PRESETS[name].max_position_embeddings == 131072
    assert (scaling.type, scaling.factor, scaling.original_max_position_embeddings) == ("llama3", factor, 8192)
    assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1, 4)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs the published configs (FATHOM_SHARED_DATA)")
@pytest.mark.parametrize(("file", "name"), [
    ("DeepSeek-V3", "deepseek-v3"), ("DeepSeek-V2-Lite-Chat", "deepseek-v2-lite-chat"),
    ("DeepSeek-V2.5", "deepseek-v2.5"), ("DeepSeekMoE-16B", "deepseek-moe-16b")])
def test_the_published_file_says_the_same(file: str, name: str) -> None:
    raw = json.loads((CONFIGS / f"{file}.config.json").read_text())
    ours = PRESETS[name].model_dump()
    shared = [field for field in ModelConfig.model_fields if field in raw and field not in ("rope_scaling",)]
    if PRESETS[name].attention == "mla":
        shared.remove("num_key_value_heads")
    assert len(shared) >= 18
    assert {field: ours[field] for field in shared} == {field: raw[field] for field in shared}
    scaling = raw["rope_scaling"]
    assert (ours["rope_scaling"] is None) == (scaling is None)
    if scaling:
        assert {k: ours["rope_scaling"][k] for k in scaling} == scaling


def test_a_wrong_name_hears_the_nearest() -> None:
    assert preset("tiny") is OWN["tiny"]
    with pytest.raises(UsageError, match=r"model=deepseek-v4: no such preset; did you mean deepseek-v3.*inspect"):
        preset("deepseek-v4")
    with pytest.raises(UsageError, match=r"DeepSeek-V3.*did you mean deepseek-v3"):
        preset("DeepSeek-V3")
    with pytest.raises(UsageError, match="tiny, bench-10m"):
        preset(["tiny"])
