"""Draws the next token of many completions at once, each from its own named randomness.

The order of what shapes a distribution, tested as such: `logit_bias`; repetition penalty (prompt and completion);
frequency and presence penalties (completion); what a guide allows, and stop tokens barred before `min_tokens`;
temperature; `top_k`; `top_p` of what `top_k` left; `min_p`; what is left is normalised. vLLM and transformers agree on
all of it but two things: vLLM applies `min_p` before `top_k` and `top_p`, transformers after, as here; and of tokens
that tie at the last place of `top_k` both keep all, where here the lowest ids stay, so that k tokens are k tokens.
Temperature 0 is greedy: the likeliest token after penalties and masks, the lowest id of a tie.

A row's result is the same, bit for bit on a CPU, whatever else is in the batch: every operation is elementwise and
exactly rounded, or runs along the last dimension of one row alone. Sums of torch over a dimension are neither.
"""

# B rows, one per completion under way; V vocabulary; G some of the rows; N most likely tokens; E entries of penalties

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fathom.core.chat import Sampling
from fathom.core.errors import FathomError, UsageError
from fathom.model.device import full_precision

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
LIKELIEST = (128, 1024)  # a cut that keeps fewer tokens than one of these needs no sorted vocabulary
BLOCK = 1 << 18  # logits taken together on a CPU: what lies in its cache, and needs no fresh pages at every step
RULES = 4096  # samplings whose parameters are kept
_NONE = float("-inf")


def uniforms(seeds_B: np.ndarray, step_B: np.ndarray | int) -> np.ndarray:
    """One number in [0, 1) per row, [B] float64, a function of (seed, step) alone.

    Splitmix64: a counter-based generator, so a completion draws the same numbers whatever else is in the batch and
    wherever it was resumed. `seeds_B` is uint64.
    """
    with np.errstate(over="ignore"):
        z = seeds_B + GOLDEN * (np.asarray(step_B).astype(np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    drawn: np.ndarray = (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return drawn


def penalises(sampling: Sampling) -> bool:
    """Whether the completion's earlier tokens matter, so that its rows need `Counts`."""
    return sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0


class Counts:
    """How often each token stands in one completion, and which ones stand in its prompt, as penalties need it.

    `add` takes constant time, so what a step costs grows with the different tokens, not with the length.
    """

    def __init__(self, prompt: Sequence[int], tokens: Sequence[int] = ()):
        different = np.unique(np.asarray(prompt, dtype=np.int64))
        self._ids = np.concatenate([different, np.zeros(64, dtype=np.int64)])
        self._counts = np.zeros(len(self._ids))
        self._place = {token: i for i, token in enumerate(different.tolist())}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Counts a token that the completion now holds."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def copy(self) -> Counts:
        """Counts of their own, for tokens that are only proposed."""
        other = Counts(())
        other._ids, other._counts, other._place = self._ids.copy(), self._counts.copy(), dict(self._place)
        return other

    @property
    def ids(self) -> np.ndarray:
        """The different tokens of prompt and completion, [E] int64."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> np.ndarray:
        """How often the completion holds each of `ids`, [E] float64."""
        return self._counts[: len(self._place)]


@dataclass(frozen=True)
class Row:
    """What the sampler must know of one completion."""

    sampling: Sampling
    seed: int  # 64 bits, the completion's own
    step: int  # tokens of the completion so far
    counts: Counts | None = None  # needed where `penalises(sampling)`
    allowed: Tensor | None = None  # guided: bool [V], or bits in int32 [V/32]; what it is too short for is barred
    stops: frozenset[int] = frozenset()  # barred while step < min_tokens


@dataclass(frozen=True)
class Drawn:
    """A token per row, and how likely it was.

    Log-probabilities are natural ones of the distribution drawn from; where that is greedy, of the untempered
    distribution after penalties and masks. `top` holds, for rows that ask, so many likeliest tokens of the same
    distribution, (id, log-probability), likeliest first, ties by id; tokens that were cut are not among them.
    """

    tokens: list[int]
    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class _Rule:
    """A Sampling as the sampler needs it, worked out once."""

    sampling: Sampling
    greedy: bool
    cuts: bool
    penalises: bool
    bias_ids: np.ndarray
    bias: np.ndarray


@dataclass
class _Batch:
    """The rows' parameters; `greedy` and the like are numbers of rows."""

    rows: Sequence[Row]
    at: int  # of the first row, in the caller's batch
    rules: list[_Rule]
    greedy: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    biased: list[int] = field(default_factory=list)
    penalised: list[int] = field(default_factory=list)
    guided: list[int] = field(default_factory=list)
    barred: list[int] = field(default_factory=list)
    told: int = 0  # the most logprobs that a row asks for

    @property
    def shaped(self) -> bool:
        """Whether any row's logits are changed before the temperature."""
        return bool(self.biased or self.penalised or self.guided or self.barred)


class Sampler:
    """Draws tokens for a vocabulary of `vocab`; remembers the parameters of the samplings it has seen."""

    def __init__(self, vocab: int, device: torch.device | str = "cpu"):
        self.vocab = vocab
        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no FP64
        self._rules: dict[int, _Rule] = {}

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError where `sampling` cannot be carried out with this vocabulary."""
        self._rule(sampling)

    def draw(self, logits_BV: Tensor, rows: Sequence[Row]) -> Drawn:
        """The next token of every row; see the module for the order of things and `Drawn` for what is told.

        Raises FathomError where a row's logits are no numbers, or leave no token that is allowed.
        """
        if logits_BV.shape != (len(rows), self.vocab):
            raise ValueError(f"logits of shape {tuple(logits_BV.shape)} for {len(rows)} rows of {self.vocab} tokens")
        size = max(len(rows), 1)
        if self.device.type == "cpu":
            size = max(BLOCK // self.vocab, torch.get_num_threads())
        drawn = Drawn([], [], [])
        for at in range(0, len(rows), size):
            block = self._block(logits_BV[at: at + size], rows[at: at + size], at)
            drawn.tokens.extend(block.tokens)
            drawn.logprobs.extend(block.logprobs)
            drawn.top.extend(block.top)
        return drawn

    def _block(self, logits_BV: Tensor, rows: Sequence[Row], at: int) -> Drawn:
        """`draw` for the rows of a batch from number `at` on."""
        batch, logits_BV = self._prepare(logits_BV, rows, at)
        if len(batch.greedy) == len(rows):
            return self._told(batch, logits_BV.argmax(-1), logits_BV.log_softmax(-1))
        shaped_BV = self._cut(batch, self._temper(batch, logits_BV))
        # inverse of the distribution function, in FP64: the first token whose cumulated probability exceeds the draw
        cumulated_BV = shaped_BV.double().softmax(-1).cumsum(-1)
        seeds_B = np.array([row.seed for row in rows], dtype=np.uint64)
        steps_B = np.array([row.step for row in rows], dtype=np.uint64)
        uniform_B1 = torch.from_numpy(uniforms(seeds_B, steps_B)).to(self.device)[:, None]
        token_B = torch.searchsorted(cumulated_BV, uniform_B1 * cumulated_BV[:, -1:], right=True)[:, 0]
        token_B = token_B.clamp(max=self.vocab - 1)  # past the end only where the logits are no numbers
        if batch.greedy:
            index = self._index(batch.greedy)
            token_B[index] = logits_BV[index].argmax(-1)
        return self._told(batch, token_B, shaped_BV.log_softmax(-1))

    def distribution(self, logits_BV: Tensor, rows: Sequence[Row]) -> Tensor:
        """Natural log-probabilities [B, V] of exactly what `draw` draws from, −inf where a token cannot be drawn.

        A greedy row's distribution is its one token, whatever `draw` tells as its log-probability.
        """
        batch, logits_BV = self._prepare(logits_BV, rows)
        logp_BV = self._cut(batch, self._temper(batch, logits_BV)).log_softmax(-1)
        _numbers(bool(logp_BV.isnan().any()), 0, lambda: logp_BV.isnan().any(-1).nonzero()[:, 0].tolist())
        if batch.greedy:
            index = self._index(batch.greedy)
            one_G1 = logits_BV[index].argmax(-1, keepdim=True)
            logp_BV[index] = torch.full_like(logp_BV[index], _NONE).scatter_(1, one_G1, 0.0)
        return logp_BV

    def _rule(self, sampling: Sampling) -> _Rule:
        found = self._rules.get(id(sampling))
        if found is not None and found.sampling is sampling:
            return found
        ids, bias = np.array(list(sampling.logit_bias), dtype=np.int64), np.array(list(sampling.logit_bias.values()))
        if bad := [i for i in sampling.logit_bias if not 0 <= i < self.vocab]:
            raise UsageError(f"logit_bias: token {bad[0]} is not in the vocabulary of {self.vocab}; use ids from 0 to "
                             f"{self.vocab - 1}")
        cuts = sampling.top_p < 1 or 0 < sampling.top_k < self.vocab or sampling.min_p > 0
        greedy = sampling.temperature == 0
        rule = _Rule(sampling, greedy, cuts and not greedy, penalises(sampling), ids, bias.astype(np.float64))
        if len(self._rules) >= RULES:
            self._rules.clear()
        self._rules[id(sampling)] = rule  # which keeps the object, so that its id stays its own
        return rule

    def _prepare(self, logits_BV: Tensor, rows: Sequence[Row], at: int = 0) -> tuple[_Batch, Tensor]:
        """The rows' parameters, and their logits in full precision after everything that comes before temperature."""
        batch = _Batch(rows, at, [self._rule(row.sampling) for row in rows])
        for b, (row, rule) in enumerate(zip(rows, batch.rules, strict=True)):
            if rule.greedy:
                batch.greedy.append(b)
            if rule.cuts:
                batch.cut.append(b)
            if rule.penalises:
                batch.penalised.append(b)
            if len(rule.bias):
                batch.biased.append(b)
            if row.allowed is not None:
                batch.guided.append(b)
            elif row.stops and row.step < row.sampling.min_tokens:
                batch.barred.append(b)
            batch.told = max(batch.told, row.sampling.logprobs)
        full_BV = logits_BV.to(device=self.device, dtype=full_precision(logits_BV.dtype))
        if not batch.shaped:
            return batch, full_BV
        if full_BV.data_ptr() == logits_BV.data_ptr() or not full_BV.is_contiguous():
            full_BV = full_BV.contiguous().clone()
        self._shape(batch, full_BV)
        return batch, full_BV

    def _shape(self, batch: _Batch, logits_BV: Tensor) -> None:
        """Bias, penalties and masks, in place."""
        flat = logits_BV.view(-1)
        if batch.biased:
            at = self._entries([(b, batch.rules[b].bias_ids) for b in batch.biased])
            bias_E = np.concatenate([batch.rules[b].bias for b in batch.biased])
            flat[at] += torch.from_numpy(bias_E).to(flat)
        if batch.penalised:
            self._penalise(batch, flat)
        if batch.guided or batch.barred:
            # a token that is barred hides what it was, so this is the last look at it
            masked = sorted(batch.guided + batch.barred)
            bad_G = logits_BV[self._index(masked)].isnan().any(-1)
            _numbers(bool(bad_G.any()), batch.at, lambda: [masked[g] for g in bad_G.nonzero()[:, 0].tolist()])
        if batch.guided:
            index = self._index(batch.guided)
            logits_BV[index] = logits_BV[index].masked_fill_(~self._allowed(batch), _NONE)
        if batch.barred:
            flat[self._entries([(b, self._stops(batch.rows[b])) for b in batch.barred])] = _NONE

    def _penalise(self, batch: _Batch, flat: Tensor) -> None:
        counts = [batch.rows[b].counts for b in batch.penalised]
        if any(c is None for c in counts):
            raise ValueError("a row with penalties has no Counts")
        found = [c for c in counts if c is not None]
        at = self._entries([(b, c.ids) for b, c in zip(batch.penalised, found, strict=True)])
        samplings = [batch.rules[b].sampling for b in batch.penalised]
        sizes = [len(c.ids) for c in found]
        repetition_E, frequency_E, presence_E = (
            torch.from_numpy(np.repeat([getattr(s, f"{name}_penalty") for s in samplings], sizes)).to(flat)
            for name in ("repetition", "frequency", "presence"))
        count_E = torch.from_numpy(np.concatenate([c.counts for c in found])).to(flat)
        logit_E = flat[at]
        logit_E = torch.where(logit_E > 0, logit_E / repetition_E, logit_E * repetition_E)
        flat[at] = logit_E - frequency_E * count_E - presence_E * (count_E > 0)

    def _allowed(self, batch: _Batch) -> Tensor:
        """What the guided rows may say, bool [G, V].

        Stop tokens that `min_tokens` bars are left out, unless a guide allows nothing else: its text is complete.
        """
        allowed_GV = torch.zeros(len(batch.guided), self.vocab, dtype=torch.bool, device=self.device)
        for g, b in enumerate(batch.guided):
            allowed = batch.rows[b].allowed
            assert allowed is not None
            known = allowed.to(self.device) if allowed.dtype == torch.bool else _bits(allowed.to(self.device))
            known = known[: self.vocab]
            allowed_GV[g, : len(known)] = known
        early = [(g, self._stops(batch.rows[b])) for g, b in enumerate(batch.guided)
                 if batch.rows[b].stops and batch.rows[b].step < batch.rows[b].sampling.min_tokens]
        if early:
            later_GV = allowed_GV.clone()
            later_GV.view(-1)[self._entries(early)] = False
            allowed_GV = torch.where(later_GV.any(-1, keepdim=True), later_GV, allowed_GV)
        return allowed_GV

    @staticmethod
    def _stops(row: Row) -> np.ndarray:
        return np.fromiter(row.stops, dtype=np.int64, count=len(row.stops))

    def _entries(self, ids: Sequence[tuple[int, np.ndarray]]) -> Tensor:
        """Where the given tokens of the given rows lie in the flat logits, [E]."""
        tokens_E = np.concatenate([of for _, of in ids])
        if len(tokens_E) and not (tokens_E.min() >= 0 and tokens_E.max() < self.vocab):
            bad = tokens_E.min() if tokens_E.min() < 0 else tokens_E.max()
            raise UsageError(f"token {bad} is not in the vocabulary of {self.vocab}; use ids from 0 to "
                             f"{self.vocab - 1}")
        rows_E = np.repeat(np.array([b for b, _ in ids], dtype=np.int64), [len(of) for _, of in ids])
        return torch.from_numpy(rows_E * self.vocab + tokens_E).to(self.device)

    def _index(self, rows: Sequence[int]) -> Tensor | slice:
        """What picks these rows out of a batch; slices keep them where they are."""
        if rows[-1] - rows[0] + 1 == len(rows):
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=self.device)

    def _temper(self, batch: _Batch, logits_BV: Tensor) -> Tensor:
        temperatures = [1.0 if rule.greedy else rule.sampling.temperature for rule in batch.rules]
        if all(t == 1 for t in temperatures):
            return logits_BV
        # never by a number of Python, which a GPU takes as a product with the rounded inverse
        return logits_BV / torch.tensor(temperatures, dtype=logits_BV.dtype, device=self.device)[:, None]

    def _cut(self, batch: _Batch, logits_BV: Tensor) -> Tensor:
        """Tempered logits with −inf where top_k, top_p or min_p cut."""
        if not batch.cut:
            return logits_BV
        rules = [batch.rules[b].sampling for b in batch.cut]
        index = self._index(batch.cut)
        cut_GV = self._kept(logits_BV[index], *(
            torch.tensor(of, dtype=kind, device=self.device)[:, None] for of, kind in (
                ([r.top_k or self.vocab for r in rules], torch.int64),
                ([r.top_p if r.top_p < 1 else math.inf for r in rules], torch.float64),
                ([r.min_p for r in rules], torch.float64))))
        if len(batch.cut) == len(batch.rows):
            return cut_GV
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.device)
        return logits_BV.index_copy(0, index, cut_GV)

    def _kept(self, logits_GV: Tensor, top_k_G1: Tensor, top_p_G1: Tensor, min_p_G1: Tensor) -> Tensor:
        """The logits of the likeliest tokens that stay, in their places, else −inf.

        Every cut keeps the first tokens of the same order, so a few of the likeliest do, unless a row keeps all of
        them: such rows are tried with more. What stays is the same either way.
        """
        cuts = [logits_GV, logits_GV.double().softmax(-1), top_k_G1, top_p_G1, min_p_G1]
        kept_GV, more_G = _first(min(self.vocab, LIKELIEST[0]), *cuts)
        more = torch.arange(len(kept_GV), device=self.device)
        for n in (*LIKELIEST[1:], self.vocab):
            if not bool(more_G.any()):
                break
            more = more[more_G]
            kept_GV[more], more_G = _first(min(self.vocab, n), *(of[more] for of in cuts))
        return kept_GV

    def _told(self, batch: _Batch, token_B: Tensor, logp_BV: Tensor) -> Drawn:
        """What goes back to the host, in one transfer."""
        parts = [token_B[:, None].double(), logp_BV.gather(1, token_B[:, None]).double()]
        n = min(batch.told, self.vocab)
        if n:
            value_BN, id_BN = likeliest(logp_BV, n)
            parts += [id_BN.double(), value_BN.double()]
        lines = torch.cat(parts, 1).tolist()
        tokens, logprobs = [int(line[0]) for line in lines], [line[1] for line in lines]
        _numbers(not all(map(math.isfinite, logprobs)), batch.at,
                 lambda: [b for b, value in enumerate(logprobs) if not math.isfinite(value)])
        if not n:
            return Drawn(tokens, logprobs, [()] * len(tokens))
        return Drawn(tokens, logprobs, [
            tuple((int(i), v) for i, v in list(zip(line[2: 2 + n], line[2 + n:], strict=True))[: row.sampling.logprobs]
                  if v > _NONE) for line, row in zip(lines, batch.rows, strict=True)])


def distribution(logits_BV: Tensor, rows: Sequence[Row]) -> Tensor:
    """`Sampler.distribution` for those who hold no sampler."""
    return Sampler(logits_BV.shape[1], logits_BV.device).distribution(logits_BV, rows)


def likeliest(values_GV: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The `n` highest values of each row and their places, highest first, ties by place: what a stable sort gives."""
    if n == values_GV.shape[1]:
        value_GN, id_GN = values_GV.sort(dim=-1, descending=True, stable=True)
        return value_GN, id_GN
    value_GN, id_GN = values_GV.topk(n)
    last_G1 = value_GN[:, -1:]
    tie_GV = (values_GV == last_G1) & (last_G1 > _NONE)
    room_G1 = (value_GN == last_G1).sum(-1, keepdim=True)
    if bool((tie_GV.sum(-1, keepdim=True) > room_G1).any()):  # more tie at the last place than there is room for
        value_GN, id_GN = values_GV.masked_fill(tie_GV & (tie_GV.cumsum(-1) > room_G1), _NONE).topk(n)
    id_GN, order = id_GN.sort(-1)
    value_GN, order = value_GN.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return value_GN, id_GN.gather(1, order)


def _first(
    n: int, logits_GV: Tensor, chance_GV: Tensor, top_k_G1: Tensor, top_p_G1: Tensor, min_p_G1: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the cuts keep of the `n` likeliest tokens, in their places, else −inf; and which rows need more, [G]."""
    vocab = logits_GV.shape[1]
    value_GN, id_GN = likeliest(logits_GV, n)
    chance_GN = chance_GV.gather(1, id_GN)
    sum_GN = chance_GN.cumsum(-1)
    before_GN = torch.cat([torch.zeros_like(sum_GN[:, :1]), sum_GN[:, :-1]], 1)
    rank_N = torch.arange(n, device=id_GN.device)
    # what top_k leaves is 1 again for top_p; without top_k it is 1 already
    whole_G1 = sum_GN.gather(1, (top_k_G1 - 1).clamp(max=n - 1))
    whole_G1 = torch.where(top_k_G1 < vocab, whole_G1, torch.ones_like(whole_G1))
    kept_GN = (rank_N < top_k_G1) & (before_GN < top_p_G1 * whole_G1)  # the token that crosses top_p stays
    kept_GN &= (chance_GN >= min_p_G1 * chance_GN[:, :1]) & (value_GN > _NONE)
    kept_GV = torch.full_like(logits_GV, _NONE).scatter_(1, id_GN, value_GN.masked_fill(~kept_GN, _NONE))
    if n == vocab:
        return kept_GV, torch.zeros(len(kept_GV), dtype=torch.bool, device=kept_GV.device)
    unknown_G1 = (top_k_G1 > n) & (top_k_G1 < vocab) & (top_p_G1 < 1)  # how much top_k leaves
    return kept_GV, (kept_GN[:, -1:] | unknown_G1)[:, 0]


def _bits(words: Tensor) -> Tensor:
    """Bits packed in int32, the lowest first, as booleans."""
    return ((words[:, None] >> torch.arange(32, device=words.device, dtype=words.dtype)) & 1).bool().view(-1)


def _numbers(bad: bool, at: int, rows: Callable[[], list[int]]) -> None:
    if bad:
        raise FathomError(
            f"the model's logits for completion {at + rows()[0]} of the batch are not numbers, or bar every token; "
            "check the weights, and that what is allowed leaves one")
