"""Scheduler and blocks, simulated: a model that only knows what it reads from the cache, in little memory.

Memory is an array of tokens. A step writes its chunks' tokens where the tables say, reads back the whole past through
the tables, and draws each next token from a hash of what it read: a wrong block shows as a wrong token.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import pytest

from fathom.core.errors import UsageError
from fathom.engine.cache import NOWHERE, Blocks, Table
from fathom.engine.scheduler import Job, Scheduler

VOCABULARY = 5  # few: prompts and completions begin alike by chance, too


def next_token(history: list[int], seed: int) -> int:
    return hashlib.blake2b(bytes(history) + seed.to_bytes(4, "big"), digest_size=1).digest()[0] % VOCABULARY


def alone(prompt: list[int], count: int, seed: int) -> list[int]:
    """What one completion by itself gives."""
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(history, seed))
    return history


@dataclass
class Simulation:
    """An engine without a model."""

    scheduler: Scheduler
    seeds: dict[Job, int] = field(default_factory=dict)
    finished: dict[Job, int] = field(default_factory=dict)  # → step
    computed: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        blocks = self.scheduler.blocks
        self.memory = [[-1] * blocks.size for _ in range(blocks.count)]

    def submit(self, prompt: list[int], most: int, seed: int, group: int) -> Job:
        job = Job(list(prompt), len(prompt), len(prompt) + most, group)
        self.scheduler.add(job)
        self.seeds[job] = seed
        return job

    def step(self, rng: random.Random) -> bool:
        """One step; whether there was anything to do."""
        size = self.scheduler.blocks.size
        for job in self.scheduler.running:  # guesses that are right for a while
            if job.table is not None and job.missing == 1 and rng.random() < 0.3:
                more = alone(job.tokens, 3, self.seeds[job])[len(job.tokens):]
                wrong = rng.randrange(4)
                job.drafts = [t if i < wrong else (t + 1) % VOCABULARY for i, t in enumerate(more)][: rng.randrange(4)]
                job.drafts = job.drafts[: max(job.room - len(job.tokens) - 1, 0)]
        step = self.scheduler.plan()
        self.scheduler.blocks.check(self.scheduler.tables())
        for copy in step.copies:
            self.memory[copy.target] = list(self.memory[copy.source])
        written: set[tuple[int, int]] = set()
        prefill = 0
        for chunk in step.chunks:
            table = chunk.job.table
            assert table is not None and chunk.first == table.length and chunk.tokens
            prefill += len(chunk.tokens) if chunk.job.missing > 1 else 0
            for position, token in enumerate(chunk.tokens + chunk.drafts, chunk.first):
                block = table.blocks[position // size]
                cell = (block, position % size)
                assert block != NOWHERE and cell not in written and self.scheduler.blocks.holders[block] == 1
                written.add(cell)
                self.memory[block][position % size] = token
        assert prefill <= self.scheduler.prefill_tokens
        assert len(self.scheduler.running) <= self.scheduler.batch
        for chunk in step.chunks:
            self.computed += len(chunk.tokens)
            table = chunk.job.table
            assert table is not None
            end = chunk.first + len(chunk.tokens) + len(chunk.drafts)
            read = [self.memory[table.blocks[p // size]][p % size] for p in range(end)]
            assert read[: chunk.first + len(chunk.tokens)] == chunk.job.tokens[: chunk.first + len(chunk.tokens)]
            for job in self.scheduler.advance(chunk):
                history = read[: len(job.tokens)]
                drafts = list(chunk.drafts) if job is chunk.job else []
                accepted = 0
                while True:
                    token = next_token(history, self.seeds[job])
                    job.tokens.append(token)
                    history.append(token)
                    if len(job.tokens) >= job.room or accepted >= len(drafts) or drafts[accepted] != token:
                        break
                    accepted += 1
                job.drafts = []
                if accepted:
                    self.scheduler.accept(job, accepted)
                if len(job.tokens) >= job.room:
                    self.finished[job] = self.steps
                    self.scheduler.remove(job)
        self.scheduler.blocks.check(self.scheduler.tables())
        self.steps += 1
        return bool(step.chunks)


def simulate(seed: int) -> Simulation:
    """Random jobs in random memory, some aborted, the weights' change among them."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 3, 4, 8, 16])
    longest = rng.choice([size, 2 * size, 3 * size + 1, 17])
    most = rng.choice([1, size, 2 * size, 9])
    count = -(-(longest + most) // size) + 1 + rng.choice([0, 0, 1, 2, 5, 40])
    simulation = Simulation(Scheduler(Blocks(count, size), rng.randint(1, 6), rng.choice([1, 2, 5, size, 64])))
    stems = [[rng.randrange(VOCABULARY) for _ in range(longest)] for _ in range(3)]
    asked: list[tuple[Job, list[int], int]] = []
    aborted: set[Job] = set()
    todo = rng.randint(1, 14)
    group = 0
    while todo or simulation.scheduler.waiting or simulation.scheduler.running:
        if todo and rng.random() < 0.5:
            todo -= 1
            group += 1
            length = rng.choice([1, size, 2 * size, longest, rng.randint(1, longest)])
            prompt = rng.choice(stems)[: min(length, longest)]
            for _ in range(rng.choice([1, 1, 2, 4])):
                tokens = rng.randint(1, most)
                number = rng.randrange(1000)
                asked.append((simulation.submit(prompt, tokens, number, group), prompt, number))
        live = [*simulation.scheduler.waiting, *simulation.scheduler.running]
        if live and rng.random() < 0.05:
            job = rng.choice(live)
            aborted.add(job)
            simulation.scheduler.remove(job)
            assert job.table is None
        if rng.random() < 0.03:
            simulation.scheduler.preempt_all()
            simulation.scheduler.blocks.forget()
            assert simulation.scheduler.blocks.available == count - 1
        worked = simulation.step(rng)
        assert worked or (not simulation.scheduler.waiting and not simulation.scheduler.running), "it stands still"
        assert simulation.steps < 20_000, "it never ends"
    for job, prompt, number in asked:
        if job not in aborted:
            assert job in simulation.finished
            assert job.tokens == alone(prompt, job.room - len(prompt), number)
    blocks = simulation.scheduler.blocks
    blocks.check([])
    assert blocks.available == blocks.total == count - 1
    return simulation


@pytest.mark.property
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_any_load_gives_what_each_completion_alone_gives(first: int) -> None:
    preempted = sum(simulate(seed).scheduler.preemptions for seed in range(first, first + 250))
    assert preempted > 50  # or the memory was not small


@pytest.mark.property
@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 20_000, 1000))
def test_twenty_thousand_loads(first: int) -> None:
    for seed in range(first, first + 1000):
        simulate(seed)


def test_the_oldest_always_goes_on() -> None:
    """A job is finished after as many steps as it has tokens, however many came after it and whatever they ask for."""
    simulation = Simulation(Scheduler(Blocks(9, 4), 8, 16))
    rng = random.Random(0)
    first = simulation.submit([1] * 16, 16, 0, 0)
    for number in range(1, 20):
        simulation.submit([number % VOCABULARY] * 12, 16, number, number)
    while first not in simulation.finished:
        before = len(first.tokens)
        simulation.step(rng)
        assert len(first.tokens) > before
    assert simulation.scheduler.preemptions


def test_a_prompt_is_computed_once_for_its_group_and_found_again_by_others() -> None:
    simulation = Simulation(Scheduler(Blocks(100, 4), 16, 64))
    rng = random.Random(0)
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    jobs = [simulation.submit(prompt, 1, number, 7) for number in range(8)]
    simulation.step(rng)
    assert simulation.computed == 10 and all(job in simulation.finished for job in jobs)
    assert [job.cached for job in jobs] == [0] + [10] * 7
    other = simulation.submit([*prompt, 1, 1], 1, 3, 8)
    simulation.step(rng)
    assert other.cached == 8 and simulation.computed == 10 + 4  # two whole blocks were known


@pytest.mark.parametrize("length", [4, 8, 12])
def test_a_prompt_of_whole_blocks_that_is_known_is_computed_from_its_last_block_on(length: int) -> None:
    simulation = Simulation(Scheduler(Blocks(100, 4), 16, 64))
    rng = random.Random(0)
    prompt = [3] * length
    for number in range(2):
        job = simulation.submit(prompt, 3, 5, number)
        while job not in simulation.finished:
            simulation.step(rng)
        assert job.tokens == alone(prompt, 3, 5)
        assert job.cached == (length - 4 if number else 0)


def test_a_prompt_found_after_a_preemption_is_not_computed_again() -> None:
    scheduler = Scheduler(Blocks(20, 2), 4, 64)
    simulation = Simulation(scheduler)
    rng = random.Random(0)
    job = simulation.submit([1, 2, 3, 4, 1, 2, 3], 4, 9, 0)
    simulation.step(rng)
    assert simulation.computed == 7
    scheduler.preempt_all()
    while job not in simulation.finished:
        simulation.step(rng)
    assert job.tokens == alone([1, 2, 3, 4, 1, 2, 3], 4, 9)
    assert simulation.computed <= 7 + 2 + 3


def test_what_cannot_ever_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"up to 17 tokens.*holds 16"):
        Scheduler(Blocks(5, 4), 4, 64).add(Job([1] * 10, 10, 17))


def test_blocks_that_nobody_holds_go_in_the_order_of_their_last_use() -> None:
    blocks = Blocks(4, 2)
    tables: list[Table] = []
    for tokens in ([1, 1], [2, 2], [3, 3]):
        table = blocks.open(tokens)
        blocks.grow(table, 2)
        blocks.advance(table, tokens, 2)
        tables.append(table)
    for table in tables:
        blocks.close(table)
    again = blocks.open([1, 1, 0])
    assert again.length == 2
    blocks.close(again)  # now [2, 2] is the oldest
    taken = Table()
    blocks.grow(taken, 2)
    assert blocks.open([2, 2, 0]).length == 0
    assert blocks.open([3, 3, 0]).length == 2 and blocks.open([1, 1, 0]).length == 2


def test_a_block_that_others_hold_is_copied_before_it_is_written() -> None:
    blocks = Blocks(10, 4)
    table = blocks.open([1, 2, 3, 4, 5, 6])
    assert not blocks.grow(table, 6)
    blocks.advance(table, [1, 2, 3, 4, 5, 6], 6)
    other = blocks.fork(table)
    (copy,) = blocks.grow(other, 7)
    assert copy.source == table.blocks[1] and copy.target == other.blocks[1] and table.blocks[0] == other.blocks[0]
    assert not blocks.grow(table, 7)  # the last holder writes in place
    blocks.check([table, other])


def test_memory_that_is_held_is_not_forgotten() -> None:
    blocks = Blocks(4, 2)
    blocks.grow(Table(), 2)
    with pytest.raises(ValueError, match="close every table"):
        blocks.forget()
