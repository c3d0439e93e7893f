"""Plan: how a model's weights are multiplied while batches are decoded.

Decoding multiplies few rows by every weight, and on a CPU two things make that slow: the library's ordinary product
is far from its best for few rows, and each small operation costs more to start than to run. A plan of a model that is
small enough to be copied therefore lays the weights out anew: what is multiplied by the same rows becomes one product
(queries absorbed into the latent's space, keys, the turned copies that rotary embedding needs; gate, all experts and
shared ones), packed for the number of rows at hand, and a step is a short list of such products. Asked to, it compiles
that list.

It changes how, never what: results agree with the model's own forward pass to rounding (tests/engine/test_plan.py).
A plan with `fixed` rows is also the same in every bit whatever stands beside a row: all its operations have one shape,
and positions are taken in pieces of one size. Figures are in docs/log.md.
"""

# B rows, one token each; D model, H heads, G key/value heads, C head width, R latent, P rotary; E experts,
# K chosen; of one product I in, O out

from __future__ import annotations

import functools
import math
import os
import platform
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.core.errors import UsageError
from fathom.engine.cache import NOWHERE
from fathom.model.attention import (
    GroupedQueryAttention,
    LatentAttention,
    RMSNorm,
    grouped_rows,
    latent_rows,
    remember,
)
from fathom.model.layout import Layout, Pages, kernels_run_on
from fathom.model.lora import effective_weight
from fathom.model.moe import MoE, SwiGLU
from fathom.model.transformer import Block, MultiTokenPrediction, Transformer

PACKED_FOR = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
FIXED_PIECE = 64  # positions that fixed rows look at together
PACKED_SIZE, PACKED_MEMORY = 64e6, 256e6  # bytes of a model whose weights are packed, and of all its packed copies
SMALL_PRODUCT = 150_000  # weights, up to which oneDNN's product of one row costs more to start than it saves
ANY, TURNED = 0, -1  # in place of a number of rows
FEW_ROWS = 4  # up to which weights of 8 bits are multiplied as they are
UNTOUCHED = 0.4  # share of experts that no row is expected to choose, from which only the chosen ones are read
DENSE_WORK = 1e6  # rows × width × expert width × the share of experts not chosen, up to which dense is faster
MEMORY_SHARE = 0.25  # of the machine's memory, the most that a model may take whose weights are copied


@dataclass(frozen=True)
class Step:
    """What one step's operations share: the layout, and cos and sin [B, 1, P] of every rotary channel."""

    layout: Layout
    cos: Tensor
    sin: Tensor

    def turn(self, straight_BHP: Tensor, turned_BHP: Tensor) -> Tensor:
        """Rotary embedding of channels whose turned copies are there already."""
        return torch.addcmul(straight_BHP * self.cos, turned_BHP, self.sin).to(straight_BHP.dtype)


Part = Callable[[Tensor, Step], Tensor]  # a normalised input [B, D] ↦ a contribution to the residual stream [B, D]


class Product:
    """x [B, I] ↦ x Wᵀ + b [B, O], W [O, I] packed for exactly `rows` rows; for ANY as it is, for TURNED transposed."""

    def __init__(
        self, weight_OI: Tensor, rows: int, place: Tensor | None = None, bias_O: Tensor | None = None
    ):
        self.weight, self.rows, self.bias = weight_OI, rows, bias_O
        self.packed = self.turned = None
        on_cpu = weight_OI.device.type == "cpu"
        self.direct = on_cpu and weight_OI.dtype == torch.float32 and _multiplies_by_onednn()
        self.small = weight_OI.numel() <= SMALL_PRODUCT
        if rows == TURNED:
            # a compiled graph reads from where it read before
            self.turned = (torch.empty_like(weight_OI.mT.contiguous()) if place is None else place).copy_(weight_OI.mT)
        elif rows > 1 and weight_OI.dtype == torch.float32 and _packs():
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight_OI, rows)
            # the call below asks the plain weight for its shape only, while the rows are as announced: let it go
            self.weight = weight_OI.new_empty(1).expand(weight_OI.shape)

    def __call__(self, x: Tensor) -> Tensor:
        if self.turned is not None:
            return x @ self.turned if self.bias is None else torch.addmm(self.bias, x, self.turned)
        if self.packed is not None:
            assert len(x) == self.rows
            y: Tensor = torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
            return y
        if self.direct and not (self.small and len(x) == 1):
            plain: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return plain
        return F.linear(x, self.weight, self.bias)  # one row is a matter of bandwidth, which no order of weights helps


class RoundedProduct:
    """The same with every weight rounded to one of 255 multiples of its row's largest / 127, kept in 8 bits.

    Few rows are multiplied by the 8 bits themselves, half of what BF16 would have to be read; more rows by the same
    rounded weights in BF16, which is faster for them.
    """

    def __init__(self, weight_OI: Tensor, few: bool, bias_O: Tensor | None):
        exact = weight_OI.float()
        scale_O = exact.abs().amax(1).clamp_(min=1e-30) / 127
        steps_OI = (exact / scale_O[:, None]).round_()
        self.scale, self.bias = scale_O.to(weight_OI.dtype), bias_O
        self.steps = self.weight = None
        # torch 2.13's product reads 16 at a time, and past the end of rows of another width: a wrong result, or a crash
        if few and weight_OI.shape[1] % 16 == 0:
            self.steps = steps_OI.to(torch.int8)
        else:
            self.weight = steps_OI.to(weight_OI.dtype) * self.scale[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        if self.steps is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        y = torch._weight_int8pack_mm(x, self.steps, self.scale)
        return y if self.bias is None else y + self.bias


@functools.cache
def _packs() -> bool:
    """Whether MKL's packed products are the fastest: on Intel's processors (docs/log.md)."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() == "i386"  # so macOS calls them


@functools.cache
def _multiplies_by_onednn() -> bool:
    """Whether oneDNN's plain products are: on others of that kind, for any number of rows."""
    known = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(known and not _packs() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


class Plan:
    """`plan.step(tokens, layout)` decodes one token of every row, as the weights were at the last `refresh`.

    On a GPU steps are `GpuStep`'s. Models of other types than FP32 and BF16, on other devices, or too large to copy run
    as they are.
    """

    def __init__(
        self, model: Transformer, compiled: bool = False, fixed: int | None = None, rounded: bool = False
    ):
        """`fixed`: every step has so many rows, and a row's bits do not depend on the others. `rounded`: weights of
        8 bits."""
        weight = model.embed_tokens.weight
        self.model, self.compiled, self.fixed, self.rounded = model, compiled, fixed, rounded
        on_cpu = weight.device.type == "cpu"
        if compiled and model.config.attention != "mla":  # its graph was not compiled within minutes (docs/log.md)
            raise UsageError("engine.compile=true: only models with latent attention are compiled; leave it out")
        if compiled and not on_cpu:
            raise UsageError(f"engine.compile=true: for models on the CPU, and this one is on {weight.device}; leave "
                             "it out: on a GPU every step is recorded as a graph")
        if compiled and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))):
            raise UsageError("engine.compile=true: needs a C++ compiler on this machine, and none was found; install "
                             "g++, or leave it out")
        if compiled and fixed:
            raise UsageError("engine.compile=true: what is compiled depends on the batch; leave it out, or "
                             "engine.deterministic")
        self.size = sum(p.numel() * p.element_size() for p in model.parameters())
        self.packs = self.size <= PACKED_SIZE and weight.dtype == torch.float32 and _packs()
        self._memory = MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.copies = on_cpu and weight.dtype in (torch.float32, torch.bfloat16) and self.size <= self._memory
        if fixed and not self.copies:
            raise UsageError(f"engine.deterministic=true: for FP32 and BF16 models on the CPU of up to "
                             f"{self._memory / 1e9:.1f} GB; this one has {self.size / 1e9:.1f} GB of {weight.dtype} on "
                             f"{weight.device}; leave it out")
        if rounded and not (self.copies and weight.dtype == torch.bfloat16 and not compiled):
            raise UsageError(f"engine.int8=true: for BF16 models on the CPU that are not compiled; this one is "
                             f"{weight.dtype} on {weight.device}; set dtype=bfloat16, or leave it out")
        self._places: dict[str, Tensor] = {}  # compiled: where its graph reads the weights, packed or not
        self._laid: OrderedDict[int, _Laid] = OrderedDict()  # by rows; the one used last is last
        self._fresh, self._rows = False, 0
        self.gpu = None
        if kernels_run_on(weight) and not (compiled or fixed):
            from fathom.engine.gpu import GpuStep

            self.gpu = GpuStep(model)
        self._flat = torch.compile(self._step, dynamic=True) if compiled else self._step
        self._whole = torch.compile(self._forward, dynamic=True) if compiled else self._forward

    def refresh(self) -> None:
        """Steps go by the weights as they are now."""
        self._fresh = False
        if self.gpu is not None:
            self.gpu.refresh()
        if not self.compiled:
            self._laid.clear()  # and the memory with it

    @property
    def most_rows(self) -> int:
        """Rows of one step, at most."""
        return self.fixed or PACKED_FOR[-1]

    def rows(self, count: int) -> int:
        """The number of rows, `count` or more, that a step for so many should have: weights are packed for few
        numbers."""
        if self.fixed:
            return self.fixed
        if self.gpu is not None:
            return self.gpu.rows(count)
        if not (self.copies and self.packs) or self.compiled:
            return count
        return next((size for size in PACKED_FOR if size >= count), count)

    def layouts(
        self, pages: Pages, tables: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> Iterator[tuple[slice, int, Layout]]:
        """Single tokens as steps of at most `most_rows`: which of them, how many rows stand for nothing behind them,
        and the layout of all. Tokens of similar lengths should stand together."""
        piece = FIXED_PIECE if self.fixed else 0
        for at in range(0, len(lengths), self.most_rows):
            part = slice(at, at + self.most_rows)
            real = len(lengths[part])
            empty = self.rows(real) - real
            width = 0 if self.gpu is None else self.gpu.width(-(-max(lengths[part]) // pages.size))
            yield part, empty, Layout.rows(
                pages, [*tables[part], *[[NOWHERE]] * empty], [*lengths[part], *[1] * empty], piece,
                split=not (self.fixed or self.compiled), width=width)

    def step(self, token_B: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, D] and logits [B, V] of the next token of every row, good until the next step."""
        if self.gpu is not None:
            return self.gpu.step(token_B, layout)
        if not self.copies:
            return self._whole(token_B, layout)
        # angles stand outside of what is compiled: fused into their many readers they would be computed for each
        step = Step(layout, *self._every_angle(layout.positions_T))
        return self._flat(token_B, step, self._laid_for(len(token_B)))

    def guess(self, next_B: Tensor, hidden_BD: Tensor, layout: Layout) -> Tensor:
        """Logits [B, V] of the token after `next_B`, by multi-token prediction from the hidden states before it."""
        if self.gpu is not None:
            return self.gpu.guess(next_B, hidden_BD, layout)
        if not self.copies:
            return self.model.logits(self.model.predict_next(hidden_BD, next_B, layout))
        laid = self._laid_for(len(next_B))
        step = Step(layout, *self._every_angle(layout.positions_T))
        mtp = laid.mtp
        assert mtp is not None
        before, attention, between, feed_forward = mtp.block
        embedding_BD = F.embedding(next_B, self.model.embed_tokens.weight)
        x_BD = mtp.join(torch.cat((mtp.embedding_norm(embedding_BD), mtp.hidden_norm(hidden_BD)), dim=-1))
        x_BD = x_BD + attention(before(x_BD), step)
        x_BD = x_BD + feed_forward(between(x_BD), step)
        return laid.head(mtp.last(x_BD))

    def _forward(self, token_B: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        hidden_BD = self.model(token_B, layout)
        return hidden_BD, self.model.logits(hidden_BD)

    def _every_angle(self, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.model.rotary(positions_B, self.model.embed_tokens.weight.dtype)
        if self.model.config.rope_interleave:
            cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        else:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        return cos[:, None, :], sin[:, None, :]

    def _step(self, token_B: Tensor, step: Step, laid: _Laid) -> tuple[Tensor, Tensor]:
        x_BD = F.embedding(token_B, self.model.embed_tokens.weight)
        for before, attention, between, feed_forward in laid.parts:
            x_BD = x_BD + attention(before(x_BD), step)
            x_BD = x_BD + feed_forward(between(x_BD), step)
        hidden_BD = laid.last(x_BD)
        return hidden_BD, laid.head(hidden_BD)

    def _laid_for(self, rows: int) -> _Laid:
        if self.compiled:
            rows = TURNED
        elif self.rounded:
            rows = FEW_ROWS if rows <= FEW_ROWS else ANY
        elif not self.packs:
            rows = ANY
        if not self._fresh or rows not in self._laid:
            self._lay_out(rows)
        self._laid.move_to_end(rows)
        return self._laid[rows]

    def _lay_out(self, rows: int) -> None:
        if not self._fresh and not self.compiled:
            self._laid.clear()
        while self._laid and not self.compiled and self.size * len(self._laid) > PACKED_MEMORY:
            self._laid.popitem(last=False)
        self._fresh, self._rows = True, rows
        parts = [self._block(number, block) for number, block in enumerate(self.model.layers)]
        mtp = []
        for module in self.model.mtp[:1]:
            assert isinstance(module, MultiTokenPrediction)
            mtp.append(_Mtp(
                self._block(module.block.layer, module.block), self._product("join", effective_weight(module.eh_proj)),
                self._norm("enorm", module.enorm), self._norm("hnorm", module.hnorm), self._norm("mtp", module.norm)))
        last, head = self._norm("last", self.model.norm), self._product("head", effective_weight(self.model.lm_head))
        if rows not in self._laid:  # else a compiled graph reads where the weights have just been put
            self._laid[rows] = _Laid(parts, last, head, *mtp)

    def _block(self, number: int, block: nn.Module) -> _Parts:
        assert isinstance(block, Block)
        attention, mlp = block.self_attn, block.mlp
        return (
            self._norm(f"{number}.before", block.input_layernorm),
            self._latent(number, attention) if isinstance(attention, LatentAttention) else
            self._grouped(number, attention),
            self._norm(f"{number}.between", block.post_attention_layernorm),
            self._experts(number, mlp) if isinstance(mlp, MoE) else self._dense(number, mlp),
        )

    def _product(self, name: str, *weights: Tensor, bias: Tensor | None = None) -> Product | RoundedProduct:
        """One product for weights that are multiplied by the same rows."""
        weight = torch.cat(weights) if len(weights) > 1 else weights[0].detach().contiguous()
        if self.rounded:
            return RoundedProduct(weight, self._rows == FEW_ROWS, bias)
        product = Product(weight, self._rows, self._places.get(name), bias)
        if product.turned is not None:
            self._keep(name, product.turned)
        return product

    def _keep(self, name: str, weight: Tensor) -> None:
        """Names a tensor that a compiled graph reads: its values may change, its shape never does."""
        torch._dynamo.mark_static(weight)
        self._places[name] = weight

    def _norm(self, name: str, norm: nn.Module) -> _Norm:
        assert isinstance(norm, RMSNorm)
        made = _Norm(norm, self._places.get(name))
        if self.compiled:
            self._keep(name, made.weight)
        return made

    def _latent(self, layer: int, attention: LatentAttention) -> Part:
        """Latent attention in absorbed form (DeepSeek-V2 §2.1.2), W_UK multiplied into the query's weights and W_UV
        into the output's. The key is one more head: its latent and rotary channels lie as a query's do."""
        heads, latent, rotary, scale = attention.heads, attention.latent, attention.rope, attention.scale
        up_HOR = effective_weight(attention.kv_b_proj).view(heads, -1, latent)
        w_uk_HCR, w_uv_HVR = up_HOR[:, : attention.nope], up_HOR[:, attention.nope:]
        last = attention.q_b_proj if attention.compress_query else attention.q_proj
        query_HCI = effective_weight(last).view(heads, attention.nope + rotary, -1)
        nope, turning = query_HCI[:, : attention.nope], query_HCI[:, attention.nope:]
        absorbed_HRI = (w_uk_HCR.float().mT @ nope.float()).to(nope.dtype)  # rounded once
        queries = torch.cat((absorbed_HRI, turning), dim=1).flatten(0, 1)
        key = effective_weight(attention.kv_a_proj_with_mqa)
        turned_queries = _turned(turning, attention.interleave).flatten(0, 1)
        turned_key = _turned(key[latent:], attention.interleave)
        o_DHV = effective_weight(attention.o_proj).view(-1, heads, attention.v_dim)
        into_DHR = torch.einsum("dhv,hvr->dhr", o_DHV.float(), w_uv_HVR.float()).to(o_DHV.dtype)
        out = self._product(f"{layer}.o", into_DHR.flatten(1))
        norm = self._norm(f"{layer}.latent", attention.kv_a_layernorm)
        if attention.compress_query:
            down = self._product(f"{layer}.down", effective_weight(attention.q_a_proj), key, turned_key)
            up = self._product(f"{layer}.q", queries, turned_queries)
            query_norm, rank = self._norm(f"{layer}.q_norm", attention.q_a_layernorm), attention.q_a_proj.out_features
        else:
            both = self._product(f"{layer}.qk", queries, key, turned_queries, turned_key)
        width = latent + rotary

        def part(x_BD: Tensor, step: Step) -> Tensor:
            if attention.compress_query:
                q_BQ, key_BC, turned_BP = torch.split(down(x_BD), [rank, width, rotary], dim=-1)
                q_BC, turned_q_BC = torch.split(up(query_norm(q_BQ)), [heads * width, heads * rotary], dim=-1)
                straight, turned = torch.cat((q_BC, key_BC), dim=-1), torch.cat((turned_q_BC, turned_BP), dim=-1)
            else:
                straight, turned = torch.split(both(x_BD), [(heads + 1) * width, (heads + 1) * rotary], dim=-1)
            all_BHC = straight.view(-1, heads + 1, width)
            rotated_BHP = step.turn(all_BHC[..., latent:], turned.view(-1, heads + 1, rotary))
            q_BHC = torch.cat((all_BHC[:, :heads, :latent], rotated_BHP[:, :heads]), dim=-1)
            remember(step.layout, layer, torch.cat(
                (norm(all_BHC[:, heads:, :latent]), rotated_BHP[:, heads:]), dim=-1))
            z_BHR = latent_rows(q_BHC, step.layout, layer, latent, scale)
            return out(z_BHR.flatten(1))

        return part

    def _grouped(self, layer: int, attention: GroupedQueryAttention) -> Part:
        heads, groups, width = attention.heads, attention.groups, attention.width
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (effective_weight(m) for m in projections)
        qk = torch.cat((q, k))
        weights, bias = [qk, v], [m.bias.detach() for m in projections if m.bias is not None]
        norms = None
        if attention.q_norm is not None and attention.k_norm is not None:  # what is turned is what the norm gives
            norms = self._norm(f"{layer}.q_norm", attention.q_norm), self._norm(f"{layer}.k_norm", attention.k_norm)
        else:  # the turned copies come out of the product too
            weights.append(_turned(qk.view(heads + groups, width, -1), attention.interleave).flatten(0, 1))
            if bias:
                turning = torch.cat(bias[:2]).view(heads + groups, width, 1)
                bias.append(_turned(turning, attention.interleave).flatten())
        product, out = self._product(f"{layer}.qkv", *weights, bias=torch.cat(bias) if bias else None), self._product(
            f"{layer}.o", effective_weight(attention.o_proj))

        def part(x_BD: Tensor, step: Step) -> Tensor:
            all_BHC = product(x_BD).view(len(x_BD), -1, width)
            qkv_BHC, turned_BHC = all_BHC[:, : heads + 2 * groups], all_BHC[:, heads + 2 * groups:]
            straight_BHC = qkv_BHC[:, : heads + groups]
            if norms is not None:
                straight_BHC = torch.cat((norms[0](straight_BHC[:, :heads]), norms[1](straight_BHC[:, heads:])), dim=1)
                turned_BHC = _turned(straight_BHC[..., None], attention.interleave)[..., 0]
            qk_BHC = step.turn(straight_BHC, turned_BHC)
            remember(step.layout, layer, qk_BHC[:, heads:], qkv_BHC[:, heads + groups:])
            return out(grouped_rows(qk_BHC[:, :heads], step.layout, layer, groups, attention.scale).flatten(1))

        return part

    def _dense(self, layer: int, mlp: SwiGLU) -> Part:
        gate_up = self._product(f"{layer}.gate_up", effective_weight(mlp.gate_proj), effective_weight(mlp.up_proj))
        down = self._product(f"{layer}.down_proj", effective_weight(mlp.down_proj))

        def part(x_BD: Tensor, _: Step) -> Tensor:
            gate, up = gate_up(x_BD).chunk(2, dim=-1)
            return down(F.silu(gate).mul_(up))

        return part

    def _experts(self, layer: int, moe: MoE) -> Part:
        """Every expert sees every row, and the weights of those not chosen are zero; with too much work for that, the
        layer's own way."""
        experts = moe.experts
        gate_up_EOD, down_EDI = experts.effective("gate_up_proj"), experts.effective("down_proj")
        count, width, inner = down_EDI.shape
        most = math.inf if self.fixed else DENSE_WORK / (width * inner * (1 - moe.gate.chosen / count))  # rows
        if self._rows > most:
            return lambda x_BD, _: moe(x_BD)[0]
        alone = None
        if self._rows in (1, ANY) and not (self.fixed or self.rounded):
            alone = self._chosen_experts(layer, moe)
        if self._rows == 1 and alone is not None:
            return alone
        gates, ups = gate_up_EOD.chunk(2, dim=1)
        downs = [down_EDI.transpose(0, 1).flatten(1)]
        first, second = [gates.flatten(0, 1)], [ups.flatten(0, 1)]
        if moe.shared_experts is not None:
            first.append(effective_weight(moe.shared_experts.gate_proj))
            second.append(effective_weight(moe.shared_experts.up_proj))
            downs.append(effective_weight(moe.shared_experts.down_proj))
        every = sum(len(w) for w in first)
        exact = moe.gate.weight.dtype == torch.float32  # else the gate's arithmetic is kept apart from the weights'
        into = self._product(f"{layer}.experts", *first, *second, *([moe.gate.weight] if exact else []))
        down = self._product(f"{layer}.down_proj", torch.cat(downs, dim=1))

        def part(x_BD: Tensor, step: Step) -> Tensor:
            if alone is not None and (1 - moe.gate.chosen / count) ** len(x_BD) > UNTOUCHED:
                return alone(x_BD, step)
            if len(x_BD) > most:
                routed: Tensor = moe(x_BD)[0]
                return routed
            gate, up, *rest = torch.split(into(x_BD), [every, every, *([count] if exact else [])], dim=-1)
            score_BE, expert_BK, weight_BK = moe.gate.choose(*rest) if exact else moe.gate(x_BD)
            weight_BE1 = torch.zeros_like(score_BE).scatter_(1, expert_BK, weight_BK)[..., None].to(up.dtype)
            inside = F.silu(gate).mul_(up)
            inside[:, : count * inner].view(-1, count, inner).mul_(weight_BE1)  # shared ones weigh one
            return down(inside)

        return part

    def _chosen_experts(self, layer: int, moe: MoE) -> Part:
        """For few rows, a matter of bandwidth: the weights of the experts that they chose are read, and no others."""
        gate_up_EOD, down_EDI = moe.experts.effective("gate_up_proj"), moe.experts.effective("down_proj")
        width = down_EDI.shape[1]
        down_EID = down_EDI.mT.contiguous()
        shared = None if moe.shared_experts is None else self._dense(layer, moe.shared_experts)

        def part(x_BD: Tensor, step: Step) -> Tensor:
            score_BE, expert_BK, weight_BK = moe.gate(x_BD)
            if len(x_BD) == 1:
                chosen_N, weight_BN = expert_BK[0], weight_BK
            else:  # all that any of them chose
                chosen_N = expert_BK.unique()
                weight_BN = torch.zeros_like(score_BE).scatter_(1, expert_BK, weight_BK)[:, chosen_N]
            gate_BNI, up_BNI = F.linear(x_BD, gate_up_EOD.index_select(0, chosen_N).view(-1, width)).view(
                len(x_BD), len(chosen_N), -1).chunk(2, dim=-1)
            inside = F.silu(gate_BNI).mul_(up_BNI).mul_(weight_BN[..., None].to(up_BNI.dtype))
            y_BD = inside.flatten(1) @ down_EID.index_select(0, chosen_N).view(-1, width)
            return y_BD if shared is None else y_BD + shared(x_BD, step)

        return part


@dataclass(frozen=True)
class _Mtp:
    """Multi-token prediction laid out."""

    block: _Parts
    join: Product | RoundedProduct
    embedding_norm: _Norm
    hidden_norm: _Norm
    last: _Norm


@dataclass(frozen=True)
class _Laid:
    """The weights laid out for a number of rows, as what is done with them."""

    parts: list[_Parts]  # per layer
    last: _Norm
    head: Product | RoundedProduct
    mtp: _Mtp | None = None


class _Norm:
    """x / rms(x) · weight in four passes: √(|x|² + D·eps) is a hypotenuse."""

    def __init__(self, norm: RMSNorm, place: Tensor | None = None):
        width = norm.weight.shape[0]
        weight = norm.weight.detach().float() * math.sqrt(width)
        self.weight = weight if place is None else place.copy_(weight)
        self.floor = torch.tensor(math.sqrt(width * norm.eps))

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        y: Tensor = (x / length.hypot_(self.floor)).mul_(self.weight).to(x.dtype)
        return y


_Parts = tuple[_Norm, Part, _Norm, Part]  # of a block: norm, attention, norm, feed-forward


def _turned(weight_HPI: Tensor, interleave: bool) -> Tensor:
    """Rows that give what rotary embedding multiplies by the sine: of a pair (a, b) of channels, (−b, a)."""
    if interleave:
        a, b = weight_HPI[..., 0::2, :], weight_HPI[..., 1::2, :]
        return torch.stack((-b, a), dim=-2).flatten(-3, -2)
    a, b = weight_HPI.chunk(2, dim=-2)
    return torch.cat((-b, a), dim=-2)
