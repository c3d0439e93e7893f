"""A published shape at its true size on one GPU, random weights: ours and transformers' on the very same tensors.

DeepSeek-V2-Lite, 15.7 billion parameters: logits to position 8,191 in FP32 and BF16, then prefill and decoding in BF16,
and the memory that was held beside what `fathom inspect` says. `python -m bench.full_size` runs it alone; needs a GPU
with 70 GB for FP32, which is left out where there is less.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench.measure import HEAD, Pair, interleave
from fathom.engine.plan import Plan
from fathom.model.cost import cost
from fathom.model.layout import Layout, Pages
from fathom.model.presets import preset
from fathom.model.transformer import Transformer

NAME = "deepseek-v2-lite"
POSITIONS = (0, 1, 63, 1023, 4095, 8191)
PROMPT, NEW = 1024, 32
BLOCK = 16  # tokens in one of the cache


def _made(dtype: torch.dtype, device: str, layers: int | None = None) -> Transformer:
    """The model with weights large enough that logits spread and attention is far from even."""
    config = preset(NAME)
    with torch.device("meta"):
        model = Transformer(config.model_copy(update={"num_hidden_layers": layers or config.num_hidden_layers}))
    model = model.to(dtype).to_empty(device=device)
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 1.2 / math.sqrt(parameter.shape[-1]), generator=draw)
    return model.eval().requires_grad_(False)


def _peer(model: Transformer) -> Any:
    """transformers' model of the same config, holding the same tensors."""
    import transformers

    config = model.config
    scaling = config.rope_scaling
    assert scaling is not None
    rope = {"rope_type": "yarn", "rope_theta": config.rope_theta, **{
        name: getattr(scaling, name) for name in (
            "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")}}
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
            "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size", "n_routed_experts",
            "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
            "routed_scaling_factor", "topk_method", "n_group", "topk_group", "norm_topk_prob", "rms_norm_eps",
            "max_position_embeddings")
    theirs = transformers.DeepseekV2Config(
        **{name: getattr(config, name) for name in same}, num_key_value_heads=config.num_attention_heads,
        rope_parameters=rope)
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(
            theirs, attn_implementation="sdpa", experts_implementation="grouped_mm")
    tensors = {k if k.startswith("lm_head") else f"model.{k}": t for k, t in model.state_dict().items()}
    peer.load_state_dict(tensors, assign=True)
    rotary = peer.model.rotary_emb  # its frequencies are no weights and are still on meta
    peer.model.rotary_emb = type(rotary)(theirs).to(model.embed_tokens.weight.device)
    return peer.eval().requires_grad_(False)


@torch.no_grad()
def _logits(model: Transformer, peer: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides' logits in FP32 at POSITIONS."""
    at = torch.tensor(POSITIONS, device=tokens.device)
    ours = model.logits(model(tokens, Layout.packed([len(tokens)], tokens.device))[at])
    if peer is None:
        return ours.float(), ours.float()
    theirs = peer.lm_head(peer.model(tokens[None], use_cache=False).last_hidden_state[0, at])
    return ours.float(), theirs.float()


def parity(dtype: torch.dtype, device: str) -> list[str]:
    """Rows: the largest |Δlogit| over the deviation of the logits, by position, and greedy tokens that differ."""
    model = _made(dtype, device)
    peer = _peer(model)
    tokens = torch.randint(0, 100_000, (POSITIONS[-1] + 1,), device=device,
                           generator=torch.Generator(device).manual_seed(1))
    ours, theirs = _logits(model, peer, tokens)
    gaps = ((ours - theirs).abs().amax(-1) / theirs.std()).tolist()
    differ = int((ours.argmax(-1) != theirs.argmax(-1)).sum())
    kind = str(dtype).removeprefix("torch.")
    each = ", ".join(f"{p}: {g:.1e}" for p, g in zip(POSITIONS, gaps, strict=True))
    return [f"| {NAME}, {kind}, logits beside transformers' | {each} | {differ} of {len(POSITIONS)} greedy differ |"]


def exactness(device: str, layers: int = 6) -> list[str]:
    """Rows: both sides in FP32 beside ours in FP64, a few layers at their true width: whose rounding is whose."""
    model = _made(torch.float32, device, layers)
    tokens = torch.randint(0, 100_000, (POSITIONS[-1] + 1,), device=device,
                           generator=torch.Generator(device).manual_seed(1))
    ours, theirs = _logits(model, _peer(model), tokens)
    model.double()
    exact, _ = _logits(model, None, tokens)
    rows = []
    for side, found in (("ours", ours), ("transformers'", theirs)):
        gaps = ((found - exact).abs().amax(-1) / exact.std()).tolist()
        each = ", ".join(f"{p}: {g:.1e}" for p, g in zip(POSITIONS, gaps, strict=True))
        rows.append(f"| {NAME}, {layers} layers, {side} in FP32 beside FP64 | {each} | |")
    return rows


class Decoder:
    """Greedy decoding of a batch of equal prompts, without a scheduler: what one step costs."""

    def __init__(self, model: Transformer, prompts_BT: Tensor):
        self.model, self.prompts, self.plan = model, prompts_BT, Plan(model)
        rows, length = prompts_BT.shape
        each = -(-(length + NEW + 1) // BLOCK)
        self.tables = [list(range(1 + row * each, 1 + (row + 1) * each)) for row in range(rows)]
        self.pages = Pages(model.config, 1 + rows * each, BLOCK, model.embed_tokens.weight.dtype, prompts_BT.device)

    def prefill(self) -> Tensor:
        """The first token after each prompt, the cache filled."""
        rows, length = self.prompts.shape
        hidden = self.model(self.prompts.flatten(), Layout.fresh(self.pages, self.tables, [length] * rows))
        return self.model.logits(hidden.view(rows, length, -1)[:, -1]).argmax(-1)

    def decode(self) -> Tensor:
        """NEW more tokens of every row."""
        token = self.prefill()
        rows, length = self.prompts.shape
        out = []
        for step in range(NEW):
            layout = Layout.rows(self.pages, self.tables, [length + step + 1] * rows)
            token = self.plan.step(token, layout)[1].argmax(-1)
            out.append(token)
        return torch.stack(out, dim=1)


@torch.no_grad()
def speed(device: str, rounds: int = 5, batches: tuple[int, ...] = (1, 32)) -> tuple[list[Pair], list[str]]:
    """Prefill and decoding beside transformers' with its static or dynamic cache, BF16; rows about memory."""
    before = torch.cuda.memory_allocated(device)  # workspaces of the libraries, from earlier calls
    model = _made(torch.bfloat16, device)
    bill = cost(model.config)
    held = torch.cuda.memory_allocated(device) - before
    notes = [f"| weights held | {held:,} B | {2 * bill.parameters:,} B by `fathom inspect` |"]
    peer = _peer(model)
    pairs = []
    for rows in batches:
        prompts = torch.randint(0, 100_000, (rows, PROMPT), device=device,
                                generator=torch.Generator(device).manual_seed(2))
        decoder = Decoder(model, prompts)
        blocks = 1 + sum(map(len, decoder.tables))
        by_cost = 2 * bill.cache_elements * blocks * BLOCK
        notes.append(f"| cache of {blocks} blocks of {BLOCK} tokens | {decoder.pages.bytes:,} B | {by_cost:,} B |")
        seconds = interleave(
            lambda d=decoder: d.prefill(), lambda p=prompts: peer.model(p, use_cache=True), rounds)
        pairs.append(Pair(f"{NAME}: prefill, {rows} × {PROMPT}", *seconds, work=rows * PROMPT))
        print(pairs[-1].line(), flush=True)
        seconds = interleave(
            lambda d=decoder: d.decode(),
            lambda p=prompts: peer.generate(
                p, attention_mask=torch.ones_like(p), do_sample=False, max_new_tokens=NEW + 1, min_new_tokens=NEW + 1,
                pad_token_id=0),
            rounds, warm=1)
        pairs.append(Pair(f"{NAME}: prefill and {NEW} tokens more, batch {rows}", *seconds, work=rows * NEW))
        print(pairs[-1].line(), flush=True)
    notes.append(f"| most memory held | {torch.cuda.max_memory_allocated(device):,} B | |")
    return pairs, notes


def main(device: str = "cuda") -> list[Pair]:
    """Prints the tables; returns the pairs."""
    print("| what | by position | |\n|---|---|---|", flush=True)
    if torch.cuda.get_device_properties(device).total_memory > 70e9:
        print("\n".join(parity(torch.float32, device)), flush=True)
        torch.cuda.empty_cache()
        print("\n".join(exactness(device)), flush=True)
        torch.cuda.empty_cache()
    print("\n".join(parity(torch.bfloat16, device)), flush=True)
    torch.cuda.empty_cache()
    print(f"\n{HEAD}", flush=True)
    pairs, notes = speed(device)
    print("\n| memory | measured | by cost |\n|---|---|---|\n" + "\n".join(notes), flush=True)
    return pairs


if __name__ == "__main__":
    main()
