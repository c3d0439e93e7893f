"""Plan: packed, dense and compiled decoding against the model's plain forward pass."""

import numpy as np
import pytest
import torch

from fathom.engine.plan import Plan
from fathom.model.config import ModelConfig
from fathom.model.layout import Cache, Layout
from fathom.model.moe import MoE
from fathom.model.transformer import Transformer
from tests.model.made_models import (
    GQA_DENSE,
    LLAMA3,
    MLA_LITE,
    MLA_MOE,
    QWEN2,
    QWEN3,
    V2,
    V2_LITE,
    V3,
    assert_within,
    sharp,
)

CONFIGS = {"latent, experts": MLA_MOE, "latent, no query latent": MLA_LITE, "grouped, dense": GQA_DENSE,
           "V2": V2, "V2-Lite": V2_LITE, "V3": V3, "Llama 3": LLAMA3, "Qwen2": QWEN2, "Qwen3": QWEN3}
STEPS = 3


def decoded(model: Transformer, config: ModelConfig, slots: int, plan: Plan | None) -> torch.Tensor:
    """Logits of a prefill and a few steps, the last ones with one slot fewer."""
    rng = np.random.default_rng(slots)
    lengths = [int(n) for n in rng.integers(1, 9, slots)]
    cache = Cache(config, slots, 16, model.embed_tokens.weight.dtype, "cpu")
    out = []
    with torch.inference_mode():
        prompt = torch.from_numpy(rng.integers(0, config.vocab_size, sum(lengths)))
        model(prompt, Layout.prefill(lengths, cache, range(slots)))
        for step in range(2 * STEPS):
            if step == STEPS and slots > 1:
                cache.keep(torch.arange(1, slots))
            tokens = torch.from_numpy(rng.integers(0, config.vocab_size, len(cache.lengths)))
            out.append(model.logits(model(tokens, Layout.decode(cache))) if plan is None else plan.step(tokens, cache))
    return torch.cat(out)


@pytest.mark.equivalence
@pytest.mark.parametrize("slots", [1, 2, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_changes_how_and_not_what(name: str, slots: int) -> None:
    config = CONFIGS[name]
    model = sharp(config, dtype=torch.float32)
    expected = decoded(model, config, slots, None)
    with Plan(model) as plan:
        assert_within(decoded(model, config, slots, plan), expected, 1e-5 * float(expected.std().clamp(min=1)))


def test_experts_too_many_to_be_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no work allowed for them experts go one after another, and the logits are the same."""
    model = sharp(MLA_MOE, dtype=torch.float32)
    with Plan(model) as plan:
        dense = decoded(model, MLA_MOE, 4, plan)
    called = []
    routed = [block.mlp for block in model.layers if isinstance(block.mlp, MoE)]
    for moe in routed:
        moe.register_forward_hook(lambda *_: called.append(1))
    monkeypatch.setattr("fathom.engine.plan.DENSE_WORK", 0.0)
    with Plan(model) as plan:
        assert_within(decoded(model, MLA_MOE, 4, plan), dense, 1e-5 * float(dense.std().clamp(min=1)))
    assert len(called) == (2 * STEPS + 1) * len(routed)  # each step, and the prefill


def test_every_plan_begins_from_the_weights_as_they_are() -> None:
    model = sharp(MLA_MOE, dtype=torch.float32)
    plan = Plan(model)
    with plan:
        before = decoded(model, MLA_MOE, 3, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with plan:
        after = decoded(model, MLA_MOE, 3, plan)
    assert (after - before).abs().max() > 1e-2
    assert_within(after, decoded(model, MLA_MOE, 3, None), 1e-5 * float(after.std().clamp(min=1)))


def test_other_types_run_as_they_are() -> None:
    """FP64 decodes through the model's own forward pass: equal to the last bit."""
    model = sharp(MLA_LITE, dtype=torch.float64)
    with Plan(model) as plan:
        assert torch.equal(decoded(model, MLA_LITE, 3, plan), decoded(model, MLA_LITE, 3, None))


def test_compiling_asks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Exception, match=r"engine\.compile=true: needs a C\+\+ compiler"):
        Plan(sharp(MLA_LITE), compiled=True)


def test_grouped_attention_is_not_compiled() -> None:
    with pytest.raises(Exception, match="only models with latent attention are compiled"):
        Plan(sharp(GQA_DENSE), compiled=True)


@pytest.mark.long
@pytest.mark.equivalence
@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.attention == "mla"])
def test_compiled_is_eager(name: str) -> None:
    config = CONFIGS[name]
    model = sharp(config, dtype=torch.float32)
    plan = Plan(model, compiled=True)
    for slots in (4, 7):
        expected = decoded(model, config, slots, None)
        with plan:
            assert_within(decoded(model, config, slots, plan), expected, 1e-5 * float(expected.std().clamp(min=1)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)  # its graph must see new weights
