"""Engine: completes prompts on the training module itself, many at once, with a cache of latents or of keys and values.

Four nouns: `Blocks` says who holds which part of the cache, `Scheduler` which tokens a step computes, `Plan` how they
are multiplied, `Sampler` what is drawn. `Engine.step` is the loop's body: it can be read from top to bottom.
"""

# T tokens of a step, B rows: positions after which a token is drawn; V vocabulary, D model

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fathom.core.chat import Completion, Message, Sampling
from fathom.core.errors import FathomError, UsageError
from fathom.engine.cache import Blocks
from fathom.engine.plan import Plan
from fathom.engine.request import Request
from fathom.engine.sampler import Counts, Drawn, Row, Sampler, likeliest, penalises
from fathom.engine.scheduler import Chunk, Scheduler, check_room
from fathom.engine.settings import EngineSettings
from fathom.engine.speculate import Drafter
from fathom.engine.text import Detokenizer, StopStrings
from fathom.model.device import full_precision
from fathom.model.layout import Layout, Pages
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

if TYPE_CHECKING:
    from fathom.engine.guide import GuideState

MEMORY_SHARE = 0.25  # of the machine's memory, or of what a GPU has free, that the cache may take unless told
FIXED_ROWS = 16  # deterministic: of every step
SCORED = 1024  # positions whose logits are held at a time


class Engine:
    """A TextGenerator on a model in this process; completions carry the sampler's own log-probabilities.

    The engine aliases the module's weights: `generate` and `complete` sample from what the trainer holds when they are
    called. Those who feed requests in one by one (`submit`, `step`) change weights through `update`.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, settings: EngineSettings | None = None):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or EngineSettings()
        fixed = FIXED_ROWS if self.settings.deterministic else None
        self.plan = Plan(model, self.settings.compile, fixed, self.settings.int8)
        self.device = model.embed_tokens.weight.device
        self.drafter = Drafter(model, self.plan) if self.settings.speculate else None
        self.sampler = Sampler(model.config.vocab_size, self.device)
        self.version = 0  # of the weights; stamped on every token
        self.prefilled = 0  # prompt tokens that went through the model, ever
        self.decoded = 0  # completion tokens sampled, ever
        self._groups = 0
        self._reserve(2)
        if self.settings.cache_gb is not None and self.settings.cache_gb > self._memory():
            raise UsageError(f"engine.cache_gb={self.settings.cache_gb:g}: there are {self._memory():.1f} GB; ask for "
                             "less")

    def state(self) -> dict[str, int]:
        """What was computed so far, for a checkpoint."""
        return {"prefilled": self.prefilled, "decoded": self.decoded}

    def restore(self, state: dict[str, int]) -> None:
        """Counts on from `state`."""
        self.prefilled, self.decoded = state["prefilled"], state["decoded"]

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int = 1,
        progress: Callable[[int, int], None] | None = None, seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions for each chat prompt; `progress(finished, all)` is called as they finish."""
        return self.complete([self.tokenizer.prompt(p) for p in prompts], sampling, n, progress, seeds)

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1,
        progress: Callable[[int, int], None] | None = None, seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions for each prompt given as token ids.

        A completion depends on the weights, the prompt, `sampling`, its own number among the n and, for a prompt that
        stands in the list several times, on which occurrence it is; not on the order of the prompts, and not on what
        was completed before: the cache begins empty. `seeds`, one for each prompt, stand in for that of `sampling` and
        for the occurrence: then it is what `submit` and a server give for that seed.
        """
        if n < 1:
            raise UsageError(f"n={n}: at least one completion per prompt; set n ≥ 1")
        if not prompts:
            return []
        if self.busy:
            raise UsageError("the engine is at work on requests that were submitted one by one; let them finish")
        requests: list[Request] = []
        seen: dict[tuple[int, ...], int] = {}
        groups: dict[tuple[int, ...], list[Request]] = {}
        for number, prompt in enumerate(prompts):
            tokens = tuple(prompt)
            occurrence = seen[tokens] = seen.get(tokens, -1) + 1
            named = (sampling.seed, tokens, occurrence) if seeds is None else (seeds[number], tokens, 0)
            made = [self._request(tokens, sampling, _seed(*named, i), i, f"prompt {number}") for i in range(n)]
            requests += made
            groups.setdefault(tokens, []).extend(made)
        self._begin(requests)
        # similar prompts together: less padding in prefill and in the cache
        ordered = [r for prompt in sorted(groups, key=lambda p: (len(p), p)) for r in groups[prompt]]
        numbers = {prompt: i for i, prompt in enumerate(groups)}
        try:
            for request in ordered:
                request.group = numbers[tuple(request.tokens)]
                self.scheduler.add(request)
            with self._evaluating():
                self._finish(len(requests), progress)
        except BaseException:
            self.reset()
            raise
        done = [self.completion(r) for r in requests]
        return [done[i * n: (i + 1) * n] for i in range(len(prompts))]

    def _finish(self, count: int, progress: Callable[[int, int], None] | None) -> None:
        """Steps until nothing is left; raises what a request failed of."""
        finished = 0
        while self.busy:
            got = self.step()
            for request in got:
                if request.error is not None:
                    raise request.error
            now = sum(request.finish is not None for request in got)
            finished += now
            if now and progress:
                progress(finished, count)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model is left as it was found; asking each of its modules costs as much as a part of a step."""
        if not self.model.training:
            yield
            return
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its completion: what the model was made for and the cache can hold."""
        return min(self.model.config.max_position_embeddings, self._affordable() * self.settings.block)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def prepare(
        self, prompt: Sequence[int], sampling: Sampling, n: int = 1, *, streamed: bool = False
    ) -> list[Request]:
        """`n` completions of a prompt, for `submit`; may be called while another thread steps.

        `streamed`: what they `said` is kept up as they grow. UsageError where they could never be finished.
        """
        tokens = tuple(prompt)
        requests = [self._request(tokens, sampling, _seed(sampling.seed, tokens, 0, i), i, "prompt", streamed)
                    for i in range(n)]
        check_room(len(tokens) + sampling.max_tokens, self._affordable() * self.settings.block)
        return requests

    def submit(self, requests: Sequence[Request]) -> None:
        """Puts the completions of one prompt in the queue; `step` until they are finished."""
        if not self.busy and self.blocks.total < (most := self._affordable()):
            self._reserve(most + 1)
        self._groups += 1
        for request in requests:
            request.group = self._groups
            self.scheduler.add(request)

    def abort(self, request: Request) -> None:
        """Ends a request that is not over; its blocks are free at once."""
        if request.finish is None and request.error is None:
            self.scheduler.remove(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Computes one step. The requests that got tokens by it, or could not go on (`error`); those that are finished
        (`finish`) are no longer in the queue."""
        step = self.scheduler.plan()
        if step.copies:
            self.pages.copy([copy.source for copy in step.copies], [copy.target for copy in step.copies])
        with self._evaluating():
            logits_BV, ends = self._compute(step.chunks)
            turns: list[tuple[Request, tuple[int, ...]]] = []  # who draws, and the guesses that are checked by it
            rows: list[Row] = []
            numbers: list[int] = []
            failed: list[Request] = []
            for chunk, end in ends:
                for job in self.scheduler.advance(chunk):
                    assert isinstance(job, Request)
                    drafts = chunk.drafts if job is chunk.job else ()
                    try:
                        rows += [job.row(drafts[:i]) for i in range(len(drafts) + 1)]
                    except FathomError as error:  # a guide that became too large is its own completion's end alone
                        job.error = error
                        self.scheduler.remove(job)
                        failed.append(job)
                        continue
                    turns.append((job, drafts))
                    numbers += range(end, end + len(drafts) + 1)
            if turns:
                if numbers != list(range(len(logits_BV))):
                    logits_BV = logits_BV[torch.tensor(numbers, device=self.device)]
                drawn = self.sampler.draw(logits_BV, rows)
                at = 0
                for request, drafts in turns:
                    self._take(request, drafts, drawn, at)
                    at += len(drafts) + 1
            if self.drafter is not None:
                self.drafter.guess(self.pages, self.sampler)
        return [*(request for request, _ in turns), *failed]

    def update(self, version: int, tensors: Mapping[str, Tensor] | None = None) -> None:
        """New weights between two steps: the cache is forgotten, and what runs goes on under them.

        `tensors` are copied into the model's parameters and buffers of these names; None where the module was changed
        in place. No token comes from mixed weights: everything is checked before anything is copied.
        """
        if tensors is not None:
            own = dict(self.model.state_dict(keep_vars=True))
            for name, tensor in tensors.items():
                if name not in own:
                    raise UsageError(f"update: the model has no tensor {name!r:.120}; its names are those of "
                                     "Transformer.state_dict()")
                if own[name].shape != tensor.shape:
                    raise UsageError(f"update: {name} has the shape {tuple(tensor.shape)}; the model's is "
                                     f"{tuple(own[name].shape)}")
            with torch.no_grad():
                for name, tensor in tensors.items():
                    own[name].copy_(tensor)
        self.version = version
        self._forget()

    def reset(self) -> None:
        """Drops everything that waits or runs, and forgets the cache."""
        for job in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.remove(job)
        self._forget()

    def release(self) -> None:
        """Gives the memory of the cache and of the plan back; the next call takes what it needs."""
        self.reset()
        self._reserve(2)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]], top: int = 0) -> list[Completion]:
        """How likely each prompt's own tokens are, each after those before it (the first: NaN), by one forward pass.

        As Completions: `tokens` are the prompt's, `top` the likeliest at their places.
        """
        for number, prompt in enumerate(prompts):
            self._check(prompt, 0, f"prompt {number}")
        if not prompts:
            return []
        lengths = [len(prompt) for prompt in prompts]
        tokens_T = torch.tensor([t for prompt in prompts for t in prompt], device=self.device)
        with self._evaluating():
            hidden_TD = self.model(tokens_T, Layout.packed(lengths, self.device))
        logprobs: list[float] = []
        tops: list[tuple[tuple[int, float], ...]] = []
        following_T = tokens_T.roll(-1)
        for at in range(0, len(tokens_T), SCORED):
            logits_BV = self.model.logits(hidden_TD[at: at + SCORED])
            logp_BV = logits_BV.to(full_precision(logits_BV.dtype)).log_softmax(-1)
            logprobs += logp_BV.gather(1, following_T[at: at + SCORED, None])[:, 0].tolist()
            if top:
                value_BN, id_BN = likeliest(logp_BV, top)
                tops += [tuple(zip(ids, values, strict=True))
                         for ids, values in zip(id_BN.tolist(), value_BN.tolist(), strict=True)]
        scored, at = [], 0
        for prompt, length in zip(prompts, lengths, strict=True):
            scored.append(Completion(
                self.tokenizer.decode(prompt), tuple(prompt), (float("nan"), *logprobs[at: at + length - 1]), "length",
                (self.version,) * length, ((), *tops[at: at + length - 1]) if top else ()))
            at += length
        self.prefilled += len(tokens_T)
        return scored

    def completion(self, request: Request) -> Completion:
        """What came of a finished request."""
        tokens = request.tokens[request.prompt:]
        text = "".join(request.said)
        if request.speaking is None:  # a stop token that is not flagged as special in its file would be read as text
            text = self.tokenizer.decode(tokens[:-1] if request.finish == "stop" else tokens)
        assert request.finish is not None
        return Completion(text, tuple(tokens), tuple(request.logprobs), request.finish, tuple(request.versions),
                          tuple(request.top) if request.sampling.logprobs else (), request.cached)

    def _check(self, prompt: Sequence[int], more: int, name: str) -> None:
        limit, vocab = self.model.config.max_position_embeddings, self.model.config.vocab_size
        if not prompt or len(prompt) + more > limit:
            raise UsageError(
                f"{name}: {len(prompt)} tokens and max_tokens={more}; the model holds 1 to {limit} in all; shorten the "
                "prompt or ask for fewer tokens")
        if bad := next((t for t in prompt if not 0 <= t < vocab), None):
            raise UsageError(f"{name}: token {bad} is not in the vocabulary of {vocab}; use ids from 0 to {vocab - 1}")

    def _request(
        self, prompt: tuple[int, ...], sampling: Sampling, seed: int, index: int, name: str, streamed: bool = False
    ) -> Request:
        self._check(prompt, sampling.max_tokens, name)
        self.sampler.check(sampling)
        return Request(
            list(prompt), len(prompt), len(prompt) + sampling.max_tokens, sampling=sampling, seed=seed, index=index,
            counts=Counts(prompt) if penalises(sampling) else None,
            guide=self._guide(sampling.json_schema),
            thinking=self._all_but_stops if sampling.json_schema is not None and self._opened(prompt) else None,
            # what satisfies a schema is over
            stops=frozenset() if sampling.ignore_stop and sampling.json_schema is None else self.tokenizer.stop_ids,
            speaking=(Detokenizer(self.tokenizer), StopStrings(sampling.stop)) if streamed or sampling.stop else None)

    @functools.cached_property
    def _thought(self) -> tuple[int | None, int | None]:
        """The tokens that open and close a thought, where the vocabulary has them."""
        return self.tokenizer.backend.token_to_id("<think>"), self.tokenizer.backend.token_to_id("</think>")

    @functools.cached_property
    def _all_but_stops(self) -> Tensor:
        allowed_V = torch.ones(self.model.config.vocab_size, dtype=torch.bool)
        allowed_V[list(self.tokenizer.stop_ids)] = False
        return allowed_V

    def _opened(self, prompt: tuple[int, ...]) -> bool:
        """Whether the prompt ends inside of a thought. What a user wrote stands before the last control token."""
        begin, end = self._thought
        if begin is None or end is None:
            return False
        structure = self.tokenizer.control_ids
        start = next((i for i in range(len(prompt), 0, -1) if prompt[i - 1] in structure), len(prompt) - 1)
        return next((token == begin for token in reversed(prompt[start:]) if token in (begin, end)), False)

    def _guide(self, schema: str | None) -> GuideState | None:
        if schema is None:
            return None
        from fathom.engine.guide import Guide  # an extra

        return Guide.of(self.tokenizer, schema).state()

    def _take(self, request: Request, drafts: tuple[int, ...], drawn: Drawn, at: int) -> None:
        """Appends the token drawn in row `at`, and those of the rows after it as far as the drafts were right."""
        right = 0
        while self._append(request, drawn.tokens[at + right], drawn.logprobs[at + right], drawn.top[at + right]):
            # a guess is right where it is what is drawn: exactly the tokens of a run without guesses
            if right == len(drafts) or drafts[right] != drawn.tokens[at + right]:
                break
            right += 1
        if self.drafter is not None:
            self.drafter.checked += len(drafts)
            self.drafter.accepted += right
        request.drafts = []
        if request.finish is not None:
            self.scheduler.remove(request)
        elif right:
            self.scheduler.accept(request, right)

    def _append(self, request: Request, token: int, logp: float, top: tuple[tuple[int, float], ...]) -> bool:
        """Whether the request goes on after `token`."""
        request.tokens.append(token)
        request.logprobs.append(logp)
        request.versions.append(self.version)
        if request.sampling.logprobs:
            request.top.append(top)
        self.decoded += 1
        if request.counts is not None:
            request.counts.add(token)
        if token in request.stops:
            request.finish = "stop"
        elif request.thinking is not None:
            if token == self._thought[1]:
                request.thinking = None
        elif request.guide is not None:
            request.guide.accept(token)
        if request.finish is None and request.speaking is not None:
            spoken, stops = request.speaking
            shown, stopped = stops.push(spoken.push(token), request.drawn >= request.sampling.min_tokens)
            request.said.append(shown)
            if stopped:  # what follows it is no text
                request.finish = "stop"
                return False
        if request.finish is None and request.drawn == request.sampling.max_tokens:
            request.finish = "length"
        if request.finish is not None and request.speaking is not None:
            spoken, stops = request.speaking
            shown, _ = stops.push(spoken.finish(), False)
            request.said.append(shown + stops.finish())
        return request.finish is None

    def _compute(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[tuple[Chunk, int]]]:
        """Runs the chunks through the model: logits, and for each chunk the row of its latest token, which those of
        its drafts follow."""
        one_by_one = self.settings.deterministic
        fresh = [c for c in chunks if len(c.tokens) > 1 and not c.first and not one_by_one]
        onward = [c for c in chunks if len(c.tokens) > 1 and c.first and not one_by_one]
        single = [c for c in chunks if len(c.tokens) == 1 or one_by_one]
        logits = [self._prefill(part) for part in (fresh, onward) if part]
        ends = [(chunk, row) for row, chunk in enumerate(fresh + onward)]
        if single:
            single.sort(key=lambda c: c.first)  # rows of similar lengths together
            at = len(ends)
            for chunk in single:
                ends.append((chunk, at + len(chunk.tokens) - 1))
                at += len(chunk.tokens) + len(chunk.drafts)
            logits.append(self._decode(single))
        for chunk in chunks:
            self.prefilled += max(min(chunk.first + len(chunk.tokens), chunk.job.prompt) - chunk.first, 0)
        if not logits:
            return torch.empty(0), []
        return torch.cat(logits) if len(logits) > 1 else logits[0], ends

    def _prefill(self, chunks: list[Chunk]) -> Tensor:
        """Logits [chunks, V] after the last token of each; all of them begin a sequence, or all go on with one."""
        tokens_T = torch.tensor([t for c in chunks for t in c.tokens], device=self.device)
        tables, counts = [_table(c) for c in chunks], [len(c.tokens) for c in chunks]
        layout = (Layout.onward(self.pages, tables, [c.first for c in chunks], counts) if chunks[0].first else
                  Layout.fresh(self.pages, tables, counts))
        hidden_TD = self.model(tokens_T, layout)
        if self.drafter is not None:
            self.drafter.follow_prompts(chunks, layout, hidden_TD)
        ends = torch.tensor(counts, device=self.device).cumsum(0) - 1
        return self.model.logits(hidden_TD[ends])

    def _decode(self, chunks: list[Chunk]) -> Tensor:
        """Logits [rows, V] after each of the chunks' tokens and drafts."""
        tokens = [t for c in chunks for t in (*c.tokens, *c.drafts)]
        tables = [_table(c) for c in chunks for _ in range(len(c.tokens) + len(c.drafts))]
        lengths = [c.first + i + 1 for c in chunks for i in range(len(c.tokens) + len(c.drafts))]
        hidden, logits = [], []
        for part, empty, layout in self.plan.layouts(self.pages, tables, lengths):
            real = len(tokens[part])
            hidden_BD, logits_BV = self.plan.step(
                torch.tensor([*tokens[part], *[0] * empty], device=self.device), layout)
            hidden.append(hidden_BD[:real])
            logits.append(logits_BV[:real])
            if len(tokens) > self.plan.most_rows:  # they are looked at after further steps
                hidden[-1], logits[-1] = hidden[-1].clone(), logits[-1].clone()
        if self.drafter is not None:
            self.drafter.follow_rows(chunks, torch.cat(hidden))
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def _begin(self, requests: Sequence[Request]) -> None:
        """Memory for these requests, as much as they need and may have, and an empty cache."""
        self._forget()
        block = self.settings.block
        needs = sorted((-(-r.room // block) for r in requests), reverse=True)[: self.settings.batch]
        wanted = min(sum(needs) + len(needs), self._affordable())
        if self.blocks.total < wanted or self.blocks.total > 4 * wanted:
            self._reserve(wanted + 1)

    def _affordable(self) -> int:
        """Blocks that the cache may have."""
        per_block = self.pages.bytes / self.blocks.count
        limit = self.settings.cache_gb
        if limit is None:
            limit = MEMORY_SHARE * self._memory()
        return max(int(limit * 1e9 / per_block) - 1, 1)

    def _memory(self) -> float:
        """What there is for a cache, in 10⁹ bytes: all of the machine's, or what a GPU has free."""
        if self.device.type == "cuda":
            return (torch.cuda.mem_get_info(self.device)[0] + self.pages.bytes) / 1e9
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9

    def _reserve(self, count: int) -> None:
        """A cache of `count` blocks, NOWHERE among them; nothing may run."""
        settings = self.settings
        layers = self.model.config.num_hidden_layers + (self.drafter is not None)
        dtype = self.model.embed_tokens.weight.dtype
        blocks = Blocks(count, settings.block)
        self.pages = Pages(self.model.config, count, settings.block, dtype, self.device, layers)
        self.blocks = blocks
        self.scheduler = Scheduler(self.blocks, settings.batch, settings.prefill_tokens)

    def _forget(self) -> None:
        self.scheduler.preempt_all()
        self.blocks.forget()
        self.plan.refresh()


def _table(chunk: Chunk) -> list[int]:
    assert chunk.job.table is not None
    return chunk.job.table.blocks


def _seed(seed: int, prompt: tuple[int, ...], occurrence: int, i: int) -> int:
    """64 bits named by the call's seed, the prompt, its occurrence and the completion's number."""
    name = f"{seed}/{occurrence}/{i}/".encode() + np.asarray(prompt, dtype=np.int32).tobytes()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
