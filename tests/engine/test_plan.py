"""Plan: packed, dense and compiled decoding against the model's plain forward pass."""

import numpy as np
import pytest
import torch

from fathom.core.errors import UsageError
from fathom.engine.cache import NOWHERE
from fathom.engine.plan import Plan, RoundedProduct
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
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
    Slots,
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
    cache = Slots(config, slots, 16, model.embed_tokens.weight.dtype)
    out = []
    with torch.inference_mode():
        prompt = torch.from_numpy(rng.integers(0, config.vocab_size, sum(lengths)))
        model(prompt, cache.fresh(lengths))
        for step in range(2 * STEPS):
            if step == STEPS and slots > 1:
                cache.keep(range(1, slots))
            tokens = torch.from_numpy(rng.integers(0, config.vocab_size, len(cache.lengths)))
            layout = cache.step()
            out.append(model.logits(model(tokens, layout)) if plan is None else plan.step(tokens, layout)[1])
    return torch.cat(out)


@pytest.mark.equivalence
@pytest.mark.parametrize("slots", [1, 2, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_changes_how_and_not_what(name: str, slots: int) -> None:
    config = CONFIGS[name]
    model = sharp(config, dtype=torch.float32)
    expected = decoded(model, config, slots, None)
    plan = Plan(model)
    assert_within(decoded(model, config, slots, plan), expected, 1e-5 * float(expected.std().clamp(min=1)))


def test_experts_too_many_to_be_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no work allowed for them experts go one after another, and the logits are the same."""
    model = sharp(MLA_MOE, dtype=torch.float32)
    plan = Plan(model)
    dense = decoded(model, MLA_MOE, 4, plan)
    called = []
    routed = [block.mlp for block in model.layers if isinstance(block.mlp, MoE)]
    for moe in routed:
        moe.register_forward_hook(lambda *_: called.append(1))
    monkeypatch.setattr("fathom.engine.plan.DENSE_WORK", 0.0)
    monkeypatch.setattr("fathom.engine.plan.UNTOUCHED", 1.0)
    plan = Plan(model)
    assert_within(decoded(model, MLA_MOE, 4, plan), dense, 1e-5 * float(dense.std().clamp(min=1)))
    assert len(called) == (2 * STEPS + 1) * len(routed)  # each step, and the prefill


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_read_the_experts_that_they_chose(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    model = sharp(MLA_MOE, dtype=torch.float32)
    monkeypatch.setattr("fathom.engine.plan._packs", lambda: False)
    monkeypatch.setattr("fathom.engine.plan.UNTOUCHED", 1.0)
    every = decoded(model, MLA_MOE, rows, Plan(model))
    monkeypatch.setattr("fathom.engine.plan.UNTOUCHED", 0.0)
    plan = Plan(model)
    read: list[int] = []
    select = torch.Tensor.index_select
    monkeypatch.setattr(torch.Tensor, "index_select", lambda self, dim, index: (
        read.append(len(index)) if self.shape[0] == MLA_MOE.n_routed_experts else None, select(self, dim, index))[1])
    chosen = decoded(model, MLA_MOE, rows, plan)
    assert_within(chosen, every, 1e-5 * float(every.std().clamp(min=1)))
    assert read and max(read) <= rows * MLA_MOE.num_experts_per_tok


def test_a_plan_goes_by_the_weights_as_they_are_when_it_is_refreshed() -> None:
    model = sharp(MLA_MOE, dtype=torch.float32)
    plan = Plan(model)
    before = decoded(model, MLA_MOE, 3, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    plan.refresh()
    after = decoded(model, MLA_MOE, 3, plan)
    assert (after - before).abs().max() > 1e-2
    assert_within(after, decoded(model, MLA_MOE, 3, None), 1e-5 * float(after.std().clamp(min=1)))


def test_other_types_run_as_they_are() -> None:
    """FP64 decodes through the model's own forward pass: equal to the last bit."""
    model = sharp(MLA_LITE, dtype=torch.float64)
    plan = Plan(model)
    assert torch.equal(decoded(model, MLA_LITE, 3, plan), decoded(model, MLA_LITE, 3, None))


def test_compiling_asks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Exception, match=r"engine\.compile=true: needs a C\+\+ compiler"):
        Plan(sharp(MLA_LITE), compiled=True)


def test_grouped_attention_is_not_compiled() -> None:
    with pytest.raises(Exception, match="only models with latent attention are compiled"):
        Plan(sharp(GQA_DENSE), compiled=True)


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_is_laid_out_anew_too(name: str) -> None:
    """As far from exact as the model's own BF16 forward pass, give or take; a choice of experts that flips shows in few
    logits, not in the middle one."""
    exact = decoded(sharp(CONFIGS[name]), CONFIGS[name], 4, None)
    model = sharp(CONFIGS[name], dtype=torch.bfloat16)
    plan = Plan(model)
    assert plan.copies
    own = (decoded(model, CONFIGS[name], 4, None).double() - exact).abs().median()
    laid = (decoded(model, CONFIGS[name], 4, plan).double() - exact).abs().median()
    assert laid < 1.5 * own


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_a_larger_model_is_laid_out_once_for_all_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.engine.plan.PACKED_SIZE", 0)
    model = sharp(CONFIGS[name], dtype=torch.float32)
    plan = Plan(model)
    for slots in (1, 2, 7):
        expected = decoded(model, CONFIGS[name], slots, None)
        assert_within(decoded(model, CONFIGS[name], slots, plan), expected, 1e-5 * float(expected.std().clamp(min=1)))
    assert len(plan._laid) == 1 and plan.rows(7) == 7


@pytest.mark.equivalence
@pytest.mark.parametrize("slots", [2, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_eight_bits_are_as_near_as_rounding_lets_them(name: str, slots: int) -> None:
    """Not those of BF16, and not far from exact; few rows and many multiply by the same weights."""
    exact = decoded(sharp(CONFIGS[name]), CONFIGS[name], slots, None)
    model = sharp(CONFIGS[name], dtype=torch.bfloat16)
    bf16, int8 = (decoded(model, CONFIGS[name], slots, Plan(model, rounded=rounded)) for rounded in (False, True))
    assert not torch.equal(bf16, int8)
    assert (int8.double() - exact).abs().median() < 0.1 * exact.std()


@pytest.mark.parametrize("width", [16, 40, 20, 96])
def test_eight_bits_are_those_that_were_asked_for(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((24, width), (3, width)))
    scale = weight.float().abs().amax(1) / 127
    rounded = (weight.float() / scale[:, None]).round() * scale[:, None]
    expected = x.float() @ rounded.T
    for rows in (3, 8):
        product = RoundedProduct(weight, rows == 3, None)
        assert (product.steps is not None) == (rows == 3 and width % 16 == 0)
        assert_within(product(x).float(), expected, 2**-6 * float(expected.abs().max()))


def test_eight_bits_are_for_bf16() -> None:
    with pytest.raises(UsageError, match=r"engine\.int8=true: for BF16 models on the CPU"):
        Plan(sharp(MLA_LITE, dtype=torch.float32), rounded=True)


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_fixed_rows_do_not_depend_on_the_others(name: str) -> None:
    """A row alone, and in each place of a full step beside others: the same bits, within rounding of the model's."""
    config = CONFIGS[name]
    model = sharp(config, dtype=torch.float32)
    plan = Plan(model, fixed=8)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        slots = Slots(config, 8, 90, torch.float32)
        lengths = [70, 1, 64, 63, 65, 9, 30, 88]
        tokens = torch.from_numpy(rng.integers(0, config.vocab_size, 2 * sum(lengths)))
        model(tokens[: sum(lengths)], slots.fresh(lengths))
        token_B = tokens[-8:]
        hidden_BD, logits_BV = plan.step(token_B, slots.step(64))
        again = Layout.rows(slots.pages, slots.tables, slots.lengths)
        assert_within(logits_BV, model.logits(model(token_B, again)), 1e-5 * float(logits_BV.std().clamp(min=1)))
    assert hidden_BD.shape == (8, config.hidden_size)
    for place in range(8):
        order = [(place + i) % 8 for i in range(8)]
        alone = Layout.rows(slots.pages, [slots.tables[3], *[[NOWHERE]] * 7], [lengths[3] + 1, *[1] * 7], 64)
        turned = Layout.rows(slots.pages, [slots.tables[i] for i in order], [lengths[i] + 1 for i in order], 64)
        with torch.inference_mode():
            _, one_BV = plan.step(torch.tensor([token_B[3], *[0] * 7]), alone)
            _, all_BV = plan.step(token_B[order], turned)
        assert torch.equal(one_BV[0], logits_BV[3])
        assert torch.equal(all_BV, logits_BV[order])


@pytest.mark.long
@pytest.mark.equivalence
@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.attention == "mla"])
def test_compiled_is_eager(name: str) -> None:
    config = CONFIGS[name]
    model = sharp(config, dtype=torch.float32)
    plan = Plan(model, compiled=True)
    for slots in (4, 7):
        expected = decoded(model, config, slots, None)
        plan.refresh()
        assert_within(decoded(model, config, slots, plan), expected, 1e-5 * float(expected.std().clamp(min=1)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)  # its graph must see new weights
