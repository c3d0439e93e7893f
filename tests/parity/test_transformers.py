"""Our models against transformers' on the same random weights, through the model directory and back.

Weights are scaled so that logits have a standard deviation of 1 and more and attention is far from even: at the scale
of initialisation a wrong softmax scale would pass. Each mutant must miss the bar by a factor of 10, or the bar proves
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.model import attention, weights
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="the second opinion: pip install 'fathom-reasoning[dev]'")

BAR = 1e-4  # FP32, logits of standard deviation ≥ 1, two libraries that add in different orders
POSITIONS = (0, 1, 63, 255, 1023)
V3 = ModelConfig(
    vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, q_lora_rank=24, kv_lora_rank=32,
    qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, intermediate_size=96, n_routed_experts=8,
    n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1,
    routed_scaling_factor=2.5, max_position_embeddings=1024,
)
LLAMA = ModelConfig(
    vocab_size=300, hidden_size=64, num_hidden_layers=3, attention="gqa", num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, intermediate_size=96, rope_interleave=False, max_position_embeddings=1024,
)
FAMILIES = {"deepseek_v3": V3, "deepseek_v3 without q latent": V3.model_copy(update={"q_lora_rank": None}),
            "llama": LLAMA, "llama tied": LLAMA.model_copy(update={"tie_word_embeddings": True})}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some text to learn a few merges from, some more text"], 290)


def scaled(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose attention is peaked and whose selection biases matter."""
    model = Transformer(config).initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(1.6 / (0.02 * parameter.shape[-1] ** 0.5))
        for moe in model.routers().values():
            moe.gate.e_score_correction_bias.copy_(0.2 * torch.randn(config.n_routed_experts, generator=generator))
    return model.eval()


def ours(model: Transformer, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens, Layout.packed([len(tokens)])))


def tokens_of(config: ModelConfig) -> Tensor:
    return torch.randint(0, config.vocab_size, (POSITIONS[-1] + 1,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = FAMILIES[name]
    model = scaled(config)
    weights.save(tmp_path / "ours", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager").eval()
    tokens = tokens_of(config)
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    got = ours(model, tokens)
    assert expected.std() >= 1
    for position in POSITIONS:
        assert (got[position] - expected[position]).abs().max() <= BAR, position
    # their directory, read by us
    theirs.save_pretrained(tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "theirs" / file).write_bytes((tmp_path / "ours" / file).read_bytes())
    back, _ = weights.load(tmp_path / "theirs")
    assert torch.equal(ours(back.eval(), tokens), got)


def _wrong_scale(model: Transformer) -> None:
    for block in model.layers:
        block.self_attn.scale *= 1.05


def _half_layout(model: Transformer) -> None:
    for block in model.layers:
        block.self_attn.interleave = not block.self_attn.interleave


def _bias_in_weight(model: Transformer) -> None:
    for moe in model.routers().values():
        gate = moe.gate

        def forward(x: Tensor, gate: torch.nn.Module = gate) -> tuple[Tensor, Tensor, Tensor]:
            score = torch.nn.functional.linear(x, gate.weight).sigmoid() + gate.e_score_correction_bias
            expert = score.topk(gate.chosen, dim=-1).indices
            weight = score.gather(1, expert)
            return score, expert, weight / weight.sum(-1, keepdim=True) * gate.scaling

        gate.forward = forward


def _no_bias(model: Transformer) -> None:
    for moe in model.routers().values():
        moe.gate.e_score_correction_bias.zero_()


def _raw_latent(model: Transformer) -> None:
    for block in model.layers:
        block.self_attn.kv_a_layernorm = torch.nn.Identity()


def _not_scaled(model: Transformer) -> None:
    for moe in model.routers().values():
        moe.gate.scaling = 1.0


def _norm_eps(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, attention.RMSNorm):
            module.eps = 1e-2


MUTANTS: dict[str, list[Callable[[Transformer], None]]] = {
    "deepseek_v3": [_wrong_scale, _half_layout, _bias_in_weight, _no_bias, _raw_latent, _not_scaled, _norm_eps],
    "llama": [_wrong_scale, _half_layout, _norm_eps],
}


@pytest.mark.parity
@pytest.mark.parametrize(("name", "mutate"), [(n, m) for n, each in MUTANTS.items() for m in each])
def test_mutants_miss(name: str, mutate: Callable[[Transformer], None]) -> None:
    model = scaled(FAMILIES[name])
    tokens = tokens_of(FAMILIES[name])
    right = ours(model, tokens)
    mutate(model)
    wrong = ours(model, tokens)
    seen = [(wrong[p] - right[p]).abs().max() for p in POSITIONS[1:]]
    assert max(seen) >= 10 * BAR
