"""Adapters: the base to the bit while B is zero, the merged model's function afterwards, gradients for them alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from made_adapters import adapted, grow
from made_models import (
    CONFIGS,
    DTYPES,
    GQA_DENSE,
    GQA_TIED,
    MLA_DENSE,
    MLA_LITE,
    MLA_MOE,
    Slots,
    assert_gradients,
    assert_within,
    deviation,
    gradients,
    sharp,
    texts,
)
from torch import Tensor, nn

from fathom.core.config import build
from fathom.core.errors import UsageError
from fathom.model import lora, weights
from fathom.model.config import Lora, ModelConfig
from fathom.model.layout import Layout
from fathom.model.lora import LoraExperts, LoraLinear, effective_weight
from fathom.model.moe import Experts
from fathom.model.transformer import Routing, Transformer

# x Wᵀ + s (x Aᵀ) Bᵀ against x (W + s B A)ᵀ: the same sum in another order. FP64 has roundings of 1e-16 and three layers
# to amplify them; FP32 has 6e-8.
MERGED = {torch.float32: 1e-5, torch.float64: 1e-12}
PROMPTS, STEPS = (7, 1, 12), 5


@torch.no_grad()
def full(model: Transformer) -> Tensor:
    """Logits of two packed sequences, and those of the token after next where the model predicts it."""
    tokens = torch.tensor([t for text in texts(model.config, 11, 6) for t in text])
    layout = Layout.packed([11, 6])
    hidden = model(tokens, layout)
    rows = [model.logits(hidden)]
    if len(model.mtp):
        rows.append(model.logits(model.predict_next(hidden, tokens.roll(-1), layout)))
    return torch.cat(rows)


@torch.no_grad()
def decoded(model: Transformer) -> Tensor:
    """Logits of prefill and of cached decoding; latent attention decodes absorbed."""
    sequences = texts(model.config, *(n + STEPS for n in PROMPTS))
    slots = Slots(model.config, len(PROMPTS), max(PROMPTS) + STEPS, model.embed_tokens.weight.dtype)
    prompt = torch.tensor([t for s, n in zip(sequences, PROMPTS, strict=True) for t in s[:n]])
    rows = [model.logits(model(prompt, slots.fresh(PROMPTS)))]
    for step in range(STEPS):
        tokens = torch.tensor([s[n + step] for s, n in zip(sequences, PROMPTS, strict=True)])
        rows.append(model.logits(model(tokens, slots.step())))
    return torch.cat(rows)


def loss_of(model: Transformer) -> Tensor:
    tokens = torch.tensor(texts(model.config, 13)[0])
    layout = Layout.packed([13])
    routing = Routing()
    hidden = model(tokens, layout, routing)
    loss = F.cross_entropy(model.logits(hidden)[:-1].double(), tokens[1:])
    if len(model.mtp):
        further = model.predict_next(hidden, tokens.roll(-1), layout, routing)
        loss = loss + F.cross_entropy(model.logits(further)[:-2].double(), tokens[2:])
    return loss


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_begins_as_the_base_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model = sharp(CONFIGS[name], dtype=dtype)
    before = full(model), decoded(model)
    lora.attach(model, Lora(rank=8), 0)
    assert torch.equal(full(model), before[0])
    assert torch.equal(decoded(model), before[1])


@pytest.mark.equivalence
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_merged_is_unmerged(name: str, dtype: torch.dtype, rank: int) -> None:
    """In the full forward pass, in decoding from the cache and, for latent attention, absorbed."""
    model = adapted(CONFIGS[name], Lora(rank=rank, alpha=6), dtype)
    got = full(model), decoded(model)
    with lora.off(model):
        assert deviation(full(model), got[0]) > 0.1  # the adapters matter
    exact = adapted(CONFIGS[name], Lora(rank=rank, alpha=6))
    rounding = [deviation(low, high) for low, high in zip(got, (full(exact), decoded(exact)), strict=True)]
    names = set(sharp(CONFIGS[name]).state_dict())
    lora.merge(model)
    assert not lora.adapted(model)
    assert set(model.state_dict()) == names
    for found, expected, noise in zip((full(model), decoded(model)), got, rounding, strict=True):
        assert expected.std() >= 1
        # in FP32 as far as the same model's own roundings carry it, which differs from shape to shape
        assert_within(found, expected, MERGED[dtype] if dtype == torch.float64 else min(5 * noise, 1e-4))


@pytest.mark.equivalence
def test_absorbed_decoding_reads_the_effective_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plain weight in its place, decoding parts from the full forward pass."""
    model = adapted(MLA_MOE, Lora(rank=4, alpha=6, targets=("kv_b_proj",)))
    sequences = texts(MLA_MOE, *(n + STEPS for n in PROMPTS))
    with torch.no_grad():
        rows = [model.logits(model(torch.tensor(s), Layout.packed([len(s)])))[n:] for s, n in zip(
            sequences, PROMPTS, strict=True)]
    expected = torch.stack(rows, 1).flatten(0, 1)
    assert_within(decoded(model)[sum(PROMPTS):], expected, 1e-9)
    monkeypatch.setattr("fathom.model.attention.effective_weight", lambda linear: linear.weight)
    assert deviation(decoded(model)[sum(PROMPTS):], expected) > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_only_adapters_get_gradients(name: str) -> None:
    model = adapted(CONFIGS[name])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loss_of(model).backward()
    found = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert found == {n for n in before if n.endswith(("lora_A", "lora_B"))}
    assert all(p.requires_grad == (n in found) for n, p in model.named_parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_recomputed_gradients_are_the_same() -> None:
    model = adapted(MLA_MOE)
    loss_of(model).backward()
    expected = gradients(model)
    model.recompute = True
    loss_of(model).backward()
    found = gradients(model)
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_gradient_of_a_layer_against_a_written_out_loop() -> None:
    """dB = s Σ g (A x)ᵀ, dA = s Σ (Bᵀ g) xᵀ, dx = Wᵀ g + s Aᵀ Bᵀ g: one token, one row, one rank at a time."""
    base = nn.Linear(5, 7, bias=False).double()
    layer = LoraLinear(base, Lora(rank=3, alpha=6), torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_B.copy_(torch.randn(7, 3))
    layer.weight.requires_grad_(False)
    x, g = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 7, dtype=torch.float64)
    layer(x).backward(g)
    w, a, b = (t.detach().tolist() for t in (layer.weight, layer.lora_A, layer.lora_B))
    xs, gs = x.detach().tolist(), g.tolist()
    d_a, d_b, d_x = torch.zeros(3, 5).double(), torch.zeros(7, 3).double(), torch.zeros(4, 5).double()
    for t in range(4):
        for r in range(3):
            ax = sum(a[r][i] * xs[t][i] for i in range(5))
            bg = sum(b[o][r] * gs[t][o] for o in range(7))
            for o in range(7):
                d_b[o, r] += 2 * gs[t][o] * ax
            for i in range(5):
                d_a[r, i] += 2 * bg * xs[t][i]
                d_x[t, i] += 2 * bg * a[r][i]
        for i in range(5):
            d_x[t, i] += sum(w[o][i] * gs[t][o] for o in range(7))
    for found, expected in ((layer.lora_A.grad, d_a), (layer.lora_B.grad, d_b), (x.grad, d_x)):
        assert_within(found, expected, 1e-12)


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float64, 3), (torch.float64, 4), (torch.float32, 3),
                                             (torch.float32, 4), (torch.float32, 8)], ids=str)
def test_experts_against_a_loop_over_experts(dtype: torch.dtype, rank: int) -> None:
    """Output and gradients, one token and one expert at a time in float64; an expert that no token visits too."""
    config = MLA_MOE.model_copy(update={"moe_intermediate_size": 8})
    base = Experts(config).to(dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in base.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    layer = LoraExperts(base, Lora(rank=rank, alpha=5), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            layer.pair(name)[1].copy_(torch.randn(layer.pair(name)[1].shape) * 0.3)
    x = torch.randn(9, 32, dtype=dtype, requires_grad=True)
    expert = torch.randint(1, 6, (9, 2))  # none visits expert 0
    weight = torch.rand(9, 2, dtype=dtype)
    g = torch.randn(9, 32, dtype=dtype)
    y = layer(x, expert, weight)
    y.backward(g)

    exact = {n: p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    x_exact = x.detach().double().requires_grad_()

    def through(name: str, e: int, v: Tensor) -> Tensor:
        a, b = exact[f"{name}_lora_A"][e], exact[f"{name}_lora_B"][e]
        return exact[name][e] @ v + 5 / rank * (b @ (a @ v))

    rows = []
    for t in range(9):
        row = torch.zeros(32, dtype=torch.float64)
        for k in range(2):
            e = int(expert[t, k])
            gate, up = through("gate_up_proj", e, x_exact[t]).chunk(2)
            row = row + weight[t, k].double() * through("down_proj", e, F.silu(gate) * up)
        rows.append(row)
    torch.stack(rows).backward(g.double())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_within(y, torch.stack(rows), tolerance)
    assert_within(x.grad, x_exact.grad, tolerance)
    for name, parameter in layer.named_parameters():
        if "lora" in name:
            assert_within(parameter.grad, exact[name].grad, tolerance)
            assert not parameter.grad[0].any()


@pytest.mark.equivalence
@pytest.mark.parametrize("config", [MLA_MOE, GQA_TIED], ids=["mla", "gqa tied"])
def test_gradients_are_those_of_the_sum_of_weights(config: ModelConfig) -> None:
    """The whole model once more, with W + s B A computed outside and autograd's own chain rule."""
    model = adapted(config)
    loss_of(model).backward()
    found = gradients(model)
    merged = sharp(config)
    own = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    effective: dict[str, Tensor] = {}
    for name, module in lora.adapted(model).items():
        for part in ("gate_up_proj", "down_proj") if isinstance(module, LoraExperts) else ("",):
            stem, plain = (f"{name}.{part}_", f"{name}.{part}") if part else (f"{name}.", f"{name}.weight")
            base = dict(model.named_parameters())[plain].detach()
            effective[plain] = base + module.scale * own[f"{stem}lora_B"] @ own[f"{stem}lora_A"]
    loss = torch.func.functional_call(_Loss(merged), {f"model.{n}": t for n, t in effective.items()}, ())
    loss.backward()
    assert_gradients(found, {n: p.grad for n, p in own.items()}, 1e-12)


class _Loss(nn.Module):
    """`loss_of` as a forward pass, so that its parameters can be replaced."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return loss_of(self.model)


def test_off_is_the_base_and_on_again() -> None:
    model = adapted(MLA_LITE)
    base, with_adapters = full(sharp(MLA_LITE)), full(model)
    with pytest.raises(ZeroDivisionError), lora.off(model):
        assert torch.equal(full(model), base)
        assert torch.equal(decoded(model), decoded(sharp(MLA_LITE)))
        raise ZeroDivisionError
    assert torch.equal(full(model), with_adapters)
    plain = sharp(MLA_LITE)
    with lora.off(plain):
        assert torch.equal(full(plain), base)


@pytest.mark.parametrize("name", CONFIGS)
def test_effective_weights_are_what_forward_multiplies_by(name: str) -> None:
    """A plain model that is given the effective weights computes what the adapted one does; so do plain modules."""
    model, plain = adapted(CONFIGS[name]), sharp(CONFIGS[name])
    inside = dict(plain.named_modules())
    with torch.no_grad():
        for place, module in model.named_modules():
            if isinstance(module, Experts):
                for part in ("gate_up_proj", "down_proj"):
                    inside[place].get_parameter(part).copy_(module.effective(part))
                    assert inside[place].effective(part) is inside[place].get_parameter(part)
            elif isinstance(module, nn.Linear) and place != "lm_head":
                inside[place].weight.copy_(effective_weight(module))
                assert effective_weight(inside[place]) is inside[place].weight
    assert_within(full(plain), full(model), 1e-12)


def test_bf16_merges_with_one_rounding() -> None:
    model = adapted(MLA_MOE, dtype=torch.bfloat16)
    wide = deepcopy(model).float()  # the BF16 numbers themselves
    for (name, module), other in zip(lora.adapted(model).items(), lora.adapted(wide).values(), strict=True):
        if isinstance(module, LoraLinear):
            assert torch.equal(effective_weight(module), effective_weight(other).bfloat16()), name
        else:
            for part in ("gate_up_proj", "down_proj"):
                assert torch.equal(module.effective(part), other.effective(part).bfloat16()), name


@pytest.mark.parametrize(("dtype", "rank", "calls"), [
    (torch.float32, 4, 6), (torch.float32, 6, 2), (torch.bfloat16, 8, 6), (torch.bfloat16, 4, 2)], ids=str)
def test_fused_products_where_the_rank_allows_them(
    dtype: torch.dtype, rank: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MLA_MOE.model_copy(update={"moe_intermediate_size": 16})
    experts = LoraExperts(Experts(config).to(dtype), Lora(rank=rank), torch.Generator())
    seen = []
    fused = F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda *a, **k: seen.append(1) or fused(*a, **k))
    experts(torch.randn(5, 32, dtype=dtype), torch.randint(0, 6, (5, 2)), torch.rand(5, 2, dtype=dtype))
    assert len(seen) == calls


# What is adapted.


def test_by_default_every_projection_but_router_embedding_and_head() -> None:
    model = adapted(MLA_MOE)
    places = set(lora.adapted(model))
    expected = {n for n, m in sharp(MLA_MOE).named_modules() if isinstance(m, (nn.Linear, Experts))}
    assert places == expected - {"lm_head", "mtp.0.eh_proj"}
    dense = {n.rpartition(".")[2] for n in lora.adapted(adapted(GQA_DENSE))}
    assert dense == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    without = sharp(MLA_MOE)
    trained = lora.attach(without, Lora(rank=2), 0, mtp=False)
    assert trained == sum(p.numel() for n, p in without.named_parameters() if n.endswith(("lora_A", "lora_B")))
    assert set(lora.adapted(without)) == {n for n in places if not n.startswith("mtp.")}
    assert not any(p.requires_grad for n, p in without.named_parameters() if n.startswith("mtp."))


def test_chosen_targets_alone() -> None:
    model = adapted(MLA_MOE, Lora(rank=2, targets=("o_proj", "experts")))
    assert {n.rpartition(".")[2] for n in lora.adapted(model)} == {"o_proj", "experts"}


def test_a_is_drawn_as_peft_draws_it_and_from_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = sharp(GQA_DENSE)
        lora.attach(model, Lora(rank=64), seed)
        drawn.append(model.layers[0].mlp.gate_proj.lora_A.detach())
        assert not model.layers[0].mlp.gate_proj.lora_B.any()
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    bound = 32**-0.5  # Kaiming-uniform with a = √5
    assert bound * 0.98 < drawn[0].abs().max() <= bound
    assert abs(float(drawn[0].std()) - bound / 3**0.5) < 0.05 * bound


def test_the_scale() -> None:
    assert Lora(rank=16, alpha=8).scale == 0.5
    assert Lora(rank=16, alpha=8, rslora=True).scale == 2.0


def test_merging_writes_a_model_that_loads(tmp_path) -> None:
    from made_models import tokenizer

    words = tokenizer()
    config = MLA_MOE.model_copy(update={"vocab_size": words.vocab_size})
    model = adapted(config, dtype=torch.float32)
    expected = full(model)
    lora.merge(model)
    weights.save(tmp_path / "model", model, words)
    back, _ = weights.load(tmp_path / "model")
    assert torch.equal(full(back), full(model))
    assert_within(full(back), expected, MERGED[torch.float32])


def test_tied_embeddings_stay_tied() -> None:
    model = grow(adapted(GQA_TIED))
    lora.merge(model)
    assert model.lm_head.weight is model.embed_tokens.weight


# What is refused.


@pytest.mark.parametrize(("values", "words"), [
    ({"rank": 0}, r"rank=0: must be ≥ 1"), ({"r": -3}, r"rank=-3: must be ≥ 1"),
    ({"alpha": 0}, r"alpha=0: must be > 0"), ({"targets": []}, r"at least 1 items"),
    ({"targets": ["q_porj"]}, r"targets: q_porj: adapters cannot stand there; did you mean q_proj\?"),
    ({"target_modules": ["lm_head"]}, r"targets: lm_head: adapters cannot stand there; there are q_proj, "),
    ({"lora_dropout": 0.1}, r"lora_dropout: adapters are trained without dropout here; leave it out"),
    ({"rnak": 4}, r"rnak: no such setting; did you mean rank\?"),
])
def test_settings_that_cannot_be(values: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(Lora, values, "here")


def test_names_that_users_type() -> None:
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True}
    assert build(Lora, given, "here") == Lora(rank=4, alpha=8, targets=("q_proj",), rslora=True)


def test_a_target_that_the_model_lacks() -> None:
    for config, target in ((MLA_DENSE, "experts"), (GQA_DENSE, "kv_b_proj"), (MLA_LITE, "q_a_proj")):
        model = sharp(config)
        with pytest.raises(UsageError, match=rf"lora.targets: {target}: this model has none; it has q_proj, .*choose"):
            lora.attach(model, Lora(targets=("o_proj", target)), 0)
        assert not lora.adapted(model)
        assert all(p.requires_grad for p in model.parameters())  # nothing was touched
