"""Engine: completes batches of prompts on the training module itself, with a cache of latents or of keys and values."""

# B requests in the running batch

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fathom.core.chat import Completion, Message, Sampling
from fathom.core.errors import FathomError
from fathom.engine.plan import Plan
from fathom.engine.sampler import sample, uniforms
from fathom.engine.settings import EngineSettings
from fathom.model.layout import Cache, Layout
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

WORTH_COMPACTING = 0.75  # the batch is made smaller once this share or less of it still runs


@dataclass
class Request:
    """One completion under way."""

    prompt: tuple[int, ...]
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"
    text: str | None = None  # set where a stop string cut it


class Engine:
    """A TextGenerator on a model in this process; completions carry the sampler's own log-probabilities.

    The engine aliases the module's weights, so it always samples from what the trainer holds; `version` is stamped on
    every completion and is the caller's to raise after each update.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, settings: EngineSettings | None = None):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or EngineSettings()
        self.plan = Plan(model, self.settings.compile)
        self.version = 0
        self.prefilled = 0  # prompt tokens that went through the model, ever
        self.decoded = 0  # completion tokens sampled, ever

    def state(self) -> dict[str, int]:
        """What was computed so far, for a checkpoint."""
        return {"prefilled": self.prefilled, "decoded": self.decoded}

    def restore(self, state: dict[str, int]) -> None:
        """Counts on from `state`."""
        self.prefilled, self.decoded = state["prefilled"], state["decoded"]

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions for each chat prompt; `progress(finished, all)` is called as they finish."""
        return self.complete([self.tokenizer.prompt(p) for p in prompts], sampling, n, progress)

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions for each prompt given as token ids.

        A completion depends on the weights, the prompt, `sampling`, its own number among the n and, for a prompt that
        stands in the list several times, on which occurrence it is; not on the order of the prompts.
        """
        limit = self.model.config.max_position_embeddings
        requests: list[Request] = []
        seen: dict[tuple[int, ...], int] = {}
        for number, prompt in enumerate(prompts):
            tokens = tuple(prompt)
            if not tokens or len(tokens) + sampling.max_tokens > limit:
                raise FathomError(
                    f"prompt {number}: {len(tokens)} tokens and max_tokens={sampling.max_tokens}; the model holds "
                    f"1 to {limit} in all; shorten the prompt or ask for fewer tokens"
                )
            occurrence = seen[tokens] = seen.get(tokens, -1) + 1
            requests += [Request(tokens, _seed(sampling.seed, tokens, occurrence, i)) for i in range(n)]
        was_training = self.model.training
        self.model.eval()
        try:
            # similar prompts together: less padding in prefill and in the cache
            order = sorted(range(len(requests)), key=lambda r: (len(requests[r].prompt), requests[r].prompt))
            for first in range(0, len(order), self.settings.batch):
                with self.plan:
                    self._run([requests[r] for r in order[first: first + self.settings.batch]], sampling)
                if progress:
                    progress(min(first + self.settings.batch, len(order)), len(order))
        finally:
            self.model.train(was_training)
        done = [self._completion(r) for r in requests]
        return [done[i * n: (i + 1) * n] for i in range(len(prompts))]

    def _run(self, requests: list[Request], sampling: Sampling) -> None:
        """Decodes one batch to its end."""
        cache, logits_BV = self._prefill(requests, sampling.max_tokens)
        live = np.arange(len(requests))  # the request in each cache slot
        running = np.ones(len(requests), dtype=bool)  # finished slots decode on, unread, until it pays to drop them
        seeds = np.array([r.seed for r in requests], dtype=np.uint64)
        for step in range(sampling.max_tokens):
            token_B, logp_B = sample(logits_BV, uniforms(seeds[live], step), sampling.temperature, sampling.top_p)
            for slot, (token, logp) in enumerate(zip(token_B.tolist(), logp_B.tolist(), strict=True)):
                if running[slot]:
                    running[slot] = self._append(requests[live[slot]], token, logp, sampling.stop)
            if not running.any() or step + 1 == sampling.max_tokens:
                break
            if running.mean() <= WORTH_COMPACTING:
                keep = torch.from_numpy(np.flatnonzero(running)).to(token_B.device)
                cache.keep(keep)
                token_B, live, running = token_B[keep], live[running], running[running]
            logits_BV = self.plan.step(token_B, cache)

    def _append(self, request: Request, token: int, logp: float, stop: tuple[str, ...]) -> bool:
        """Whether the request goes on after `token`."""
        request.tokens.append(token)
        request.logprobs.append(logp)
        self.decoded += 1
        if token in self.tokenizer.stop_ids:
            request.finish = "stop"
            return False
        if stop:
            text = self.tokenizer.decode(request.tokens)
            found = [at for s in stop if (at := text.find(s)) >= 0]
            if found:
                request.finish, request.text = "stop", text[: min(found)]
                return False
        return True

    def _prefill(self, requests: list[Request], room: int) -> tuple[Cache, Tensor]:
        """A cache with every request's prompt in its slot, and the logits after it; equal prompts go through once."""
        device = self.model.embed_tokens.weight.device
        prompts = list(dict.fromkeys(r.prompt for r in requests))
        number = {prompt: i for i, prompt in enumerate(prompts)}
        longest = max(map(len, prompts))
        cache = Cache(self.model.config, len(prompts), longest + room, self.model.embed_tokens.weight.dtype, device)
        logits = []
        first = 0
        while first < len(prompts):
            last, size = first, 0
            while last < len(prompts) and (last == first or size + len(prompts[last]) <= self.settings.prefill_tokens):
                size += len(prompts[last])
                last += 1
            lengths = [len(p) for p in prompts[first:last]]
            tokens = torch.tensor([t for p in prompts[first:last] for t in p], device=device)
            hidden = self.model(tokens, Layout.prefill(lengths, cache, range(first, last)))
            logits.append(self.model.logits(hidden[torch.tensor(lengths, device=device).cumsum(0) - 1]))
            self.prefilled += size
            first = last
        rows = torch.tensor([number[r.prompt] for r in requests], device=device)
        cache.keep(rows)
        return cache, torch.cat(logits)[rows]

    def _completion(self, request: Request) -> Completion:
        text = request.text
        if text is None:  # a stop token that is not flagged as special in its file would be read as text
            text = self.tokenizer.decode(request.tokens[:-1] if request.finish == "stop" else request.tokens)
        return Completion(text, tuple(request.tokens), tuple(request.logprobs), request.finish, self.version)


def _seed(seed: int, prompt: tuple[int, ...], occurrence: int, i: int) -> int:
    """64 bits named by the call's seed, the prompt, its occurrence and the completion's number."""
    name = f"{seed}/{occurrence}/{i}/".encode() + np.asarray(prompt, dtype=np.int32).tobytes()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
