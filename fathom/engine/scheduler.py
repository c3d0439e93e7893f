"""Scheduler: which tokens of which completions the next step computes. Pure bookkeeping; loads no torch.

A job is one completion: its prompt's tokens and those drawn so far. A step takes a chunk of every running job: its
latest token (decoding), or a piece of what is not in the cache yet (a prompt, or everything after a preemption). Jobs
are served in the order of their arrival. One that lacks memory takes it from the youngest, which waits and is computed
again later; so the oldest always goes on, and nothing starves.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from fathom.core.errors import UsageError
from fathom.engine.cache import Blocks, Copy, Table


@dataclass(eq=False)
class Job:
    """One completion under way, as the scheduler sees it."""

    tokens: list[int]  # prompt and completion
    prompt: int  # how many of them are the prompt
    room: int  # most that there will ever be
    group: int = 0  # jobs of one group have the same prompt, which is computed once
    drafts: list[int] = field(default_factory=list)  # guesses at what follows, to be computed along
    arrival: int = -1  # set when it is added
    table: Table | None = None  # while it runs
    leader: Job | None = None  # computes the prompt in its place
    followers: list[Job] = field(default_factory=list)
    cached: int = 0  # prompt tokens that were found in the cache, or computed by another job

    @property
    def missing(self) -> int:
        """Tokens whose entries are not in the cache."""
        return len(self.tokens) - (self.table.length if self.table else 0)


@dataclass(frozen=True)
class Chunk:
    """`tokens` of a job from position `first` on, then drafts; `last`: the next token can be drawn after it."""

    job: Job
    first: int
    tokens: tuple[int, ...]
    drafts: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class Step:
    """What is computed next: copies of blocks first, then all chunks."""

    copies: list[Copy]
    chunks: list[Chunk]


def check_room(room: int, most: int) -> None:
    """UsageError where a completion could become longer than the whole cache."""
    if room > most:
        raise UsageError(f"a completion of up to {room} tokens, prompt included: the cache holds {most}; ask for "
                         "fewer, or give the engine more memory (engine.cache_gb)")


class Scheduler:
    """Continuous batching over `blocks`: at most `batch` jobs run; a step computes at most `prefill_tokens` tokens
    beside one (and its drafts) of every job that is decoding."""

    def __init__(self, blocks: Blocks, batch: int, prefill_tokens: int):
        self.blocks, self.batch, self.prefill_tokens = blocks, batch, prefill_tokens
        self.waiting: list[Job] = []  # by arrival
        self.running: list[Job] = []  # by arrival
        self.preemptions = 0
        self._arrivals = 0

    def add(self, job: Job) -> None:
        """Puts a job at the end of the queue; UsageError where it could never run to its end."""
        check_room(job.room, self.blocks.total * self.blocks.size)
        job.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.append(job)

    def remove(self, job: Job) -> None:
        """Ends a job, finished or not; its blocks are free at once."""
        if job in self.waiting:
            self.waiting.remove(job)
        else:
            self._stop(job)

    def plan(self) -> Step:
        """The next step; without chunks where nothing is left to do."""
        step = Step([], [])
        budget = self.prefill_tokens
        for job in list(self.running):
            if job.table is None:  # it follows another one, or was preempted by one before it
                continue
            decoding = job.missing == 1
            count = 1 if decoding else min(job.missing, budget)
            if count and self._make_room(job, count):
                budget -= 0 if decoding else count
                self._compute(step, job, count)
        while self.waiting and len(self.running) < self.batch and budget:
            admitted = self._admit(step, self.waiting[0], budget)
            if admitted is None:
                break
            budget -= admitted
            bisect.insort(self.running, self.waiting.pop(0), key=lambda one: one.arrival)
        return step

    def advance(self, chunk: Chunk) -> list[Job]:
        """A chunk was computed. The jobs whose next token can be drawn after it: none, the job, or the job and those
        that waited for its prompt."""
        job = chunk.job
        assert job.table is not None
        self.blocks.advance(job.table, job.tokens, chunk.first + len(chunk.tokens))
        if not chunk.last:
            return []
        followers, job.followers = job.followers, []
        for follower in followers:
            follower.leader, follower.table = None, self.blocks.fork(job.table)
            follower.cached = follower.prompt
        return [job, *followers]

    def accept(self, job: Job, count: int) -> None:
        """The first `count` drafts of the chunk that was advanced over were right, and stand among the job's tokens."""
        assert job.table is not None
        self.blocks.advance(job.table, job.tokens, job.table.length + count)

    def preempt_all(self) -> None:
        """Everything that runs waits again, to be computed anew."""
        counted = self.preemptions
        while self.running:
            self._preempt(self.running[-1])
        self.preemptions = counted  # of memory that ran short

    def tables(self) -> list[Table]:
        """Those that are open."""
        return [job.table for job in self.running if job.table is not None]

    def _admit(self, step: Step, job: Job, budget: int) -> int | None:
        """The tokens of it that this step computes; None where it must wait for memory."""
        # those that run need a block each before long: to take it from them again would be work for nothing
        spare = self.blocks.available - len(self.running)
        if leader := self._leader(job):
            if not spare:
                return None
            job.leader = leader
            leader.followers.append(job)
            return 0
        table = self.blocks.open(job.tokens)
        spare = self.blocks.available - len(self.running)
        if self.blocks.needed(table, len(job.tokens)) > spare:
            self.blocks.close(table)
            return None
        job.table = table
        if len(job.tokens) == job.prompt:
            job.cached = table.length
        count = min(job.missing, budget)
        self._compute(step, job, count)
        return count

    def _leader(self, job: Job) -> Job | None:
        """The job that computes the same prompt just now."""
        if len(job.tokens) > job.prompt:
            return None
        return next((one for one in self.running if one.group == job.group and one.table is not None
                     and len(one.tokens) == one.prompt), None)

    def _compute(self, step: Step, job: Job, count: int) -> None:
        assert job.table is not None
        first = job.table.length
        last = first + count == len(job.tokens)
        drafts = tuple(job.drafts) if last else ()
        if self.blocks.needed(job.table, first + count + len(drafts)) > self.blocks.available:
            drafts = ()
        step.copies.extend(self.blocks.grow(job.table, first + count + len(drafts)))
        step.chunks.append(Chunk(job, first, tuple(job.tokens[first: first + count]), drafts, last))

    def _make_room(self, job: Job, count: int) -> bool:
        """Whether the job still runs, with blocks for `count` tokens more to be had."""
        assert job.table is not None
        while self.blocks.needed(job.table, job.table.length + count) > self.blocks.available:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        self.preemptions += job.table is not None
        self._stop(job)
        bisect.insort(self.waiting, job, key=lambda one: one.arrival)

    def _stop(self, job: Job) -> None:
        """Takes a job out of those that run, and what it holds from it; those that followed it wait again."""
        self.running.remove(job)
        if job.table is not None:
            self.blocks.close(job.table)
            job.table = None
        if job.leader is not None:
            job.leader.followers.remove(job)
            job.leader = None
        for follower in list(job.followers):
            self._stop(follower)
            bisect.insort(self.waiting, follower, key=lambda one: one.arrival)
