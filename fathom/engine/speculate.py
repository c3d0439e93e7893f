"""Speculation: the model's multi-token prediction guesses the next token, and the next step checks it.

A step computes a completion's latest token and the guess after it, and draws after both. The guess is right where it is
the very token that is drawn in its place, from the model's own distribution and with that place's own number. So the
completion is the one that would have come without guesses; only what is computed per step changes. For a guess that is
one token, accepting it this often is the optimum of rejection sampling (acceptance p(guess)); and because the guess is
drawn with the same number as the token itself, the two agree more often than chance would have it where both
distributions are flat.
"""

# T tokens, B rows, D model

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.core.errors import UsageError
from fathom.engine.plan import Plan
from fathom.engine.request import Request
from fathom.engine.sampler import Sampler
from fathom.engine.scheduler import Chunk
from fathom.model.layout import Layout, Pages
from fathom.model.transformer import Transformer


class Drafter:
    """Guesses with the first module of multi-token prediction (DeepSeek-V3 §2.2).

    Its own cache entries lie beside the model's, in one layer more. At position p they are made of the hidden state of
    p and of the token at p + 1: the last one of a shared beginning is that of whoever came first, which can make a
    guess worse and never a token wrong.
    """

    def __init__(self, model: Transformer, plan: Plan):
        if not model.mtp:
            raise UsageError("engine.speculate=true: this model has no module for multi-token prediction "
                             "(num_nextn_predict_layers=0); leave it out")
        self.model, self.plan = model, plan
        self.checked = self.accepted = 0  # guesses, ever
        self._prompts: list[tuple[list[Chunk], Layout, Tensor]] = []
        self._rows: list[tuple[Chunk, Tensor]] = []

    def follow_prompts(self, chunks: list[Chunk], layout: Layout, hidden_TD: Tensor) -> None:
        """Remembers what the model made of these chunks, end to end, until `guess`."""
        self._prompts.append((chunks, layout, hidden_TD))

    def follow_rows(self, chunks: Sequence[Chunk], hidden_BD: Tensor) -> None:
        """The same for chunks that were computed row by row, drafts included."""
        at = 0
        for chunk in chunks:
            size = len(chunk.tokens) + len(chunk.drafts)
            self._rows.append((chunk, hidden_BD[at: at + size]))
            at += size

    def guess(self, pages: Pages, sampler: Sampler) -> None:
        """Sets the drafts of all completions that go on after this step, whose tokens have been drawn."""
        ready: list[tuple[Request, Tensor]] = []
        for chunks, layout, hidden_TD in self._prompts:
            ready += self._through_module(chunks, layout, hidden_TD)
        if self._rows:
            ready += self._through_plan(pages)
        self._prompts, self._rows = [], []
        if ready:
            drawn = sampler.draw(torch.stack([logits_V for _, logits_V in ready]), [r.row() for r, _ in ready])
            for (request, _), token in zip(ready, drawn.tokens, strict=True):
                request.drafts = [token]

    def _through_module(self, chunks: list[Chunk], layout: Layout, hidden_TD: Tensor) -> list[tuple[Request, Tensor]]:
        following, ends = [], []
        for chunk in chunks:
            count = len(chunk.tokens)
            known = chunk.job.tokens[chunk.first + 1: chunk.first + count + 1]
            following += [*known, *[0] * (count - len(known))]
            ends.append(len(following) - 1)
        next_T = torch.tensor(following, device=hidden_TD.device)
        further_TD = self.model.predict_next(hidden_TD, next_T, layout)
        wanted = [(chunk.job, end) for chunk, end in zip(chunks, ends, strict=True) if _goes_on(chunk)]
        if not wanted:
            return []
        logits_BV = self.model.logits(further_TD[[end for _, end in wanted]])
        return [(job, row) for (job, _), row in zip(wanted, logits_BV, strict=True) if isinstance(job, Request)]

    def _through_plan(self, pages: Pages) -> list[tuple[Request, Tensor]]:
        tables, lengths, following, hidden = [], [], [], []
        wanted: list[tuple[Request, int]] = []
        for chunk, hidden_BD in self._rows:
            if chunk.job.table is None:  # finished
                continue
            end = chunk.job.table.length  # of the drafts, those that were right
            for position in range(chunk.first, end):
                tables.append(chunk.job.table.blocks)
                lengths.append(position + 1)
                following.append(chunk.job.tokens[position + 1])
            hidden.append(hidden_BD[: end - chunk.first])
            if isinstance(chunk.job, Request) and _goes_on(chunk):
                wanted.append((chunk.job, len(lengths) - 1))
        if not hidden:
            return []
        hidden_TD = torch.cat(hidden)
        rows = []
        for part, empty, layout in self.plan.layouts(pages, tables, lengths):
            real = len(following[part])
            next_B = torch.tensor([*following[part], *[0] * empty], device=hidden_TD.device)
            state_BD = torch.nn.functional.pad(hidden_TD[part], (0, 0, 0, empty))
            rows.append(self.plan.guess(next_B, state_BD, layout)[:real].clone())  # before the next guess
        logits_TV = torch.cat(rows)
        return [(request, logits_TV[row]) for request, row in wanted]


def _goes_on(chunk: Chunk) -> bool:
    """Whether its completion has had a token drawn, goes on, and has room for two more."""
    job = chunk.job
    guided = isinstance(job, Request) and job.guide is not None  # what is allowed after a guess is not known before it
    return chunk.last and job.table is not None and len(job.tokens) + 1 < job.room and not guided
