"""The client's journal and endings: nothing is paid for twice, whatever ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint import Asked, FakeEndpoint, Status, prompts, reply, settings

from fathom.core.chat import Completion, Message, Sampling
from fathom.core.client import Client, EndpointFailed
from fathom.core.client.writer import Writer
from fathom.core.errors import Stopped
from fathom.core.journal import Journal

# The journal.


def test_the_journal_knows_every_difference(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    with FakeEndpoint() as at:
        def ask(sampling: Sampling = Sampling(), **values: Any) -> int:  # noqa: B008
            before = len(at.asked)
            with Client(settings(at, journal=path, **values)) as client:
                client.generate(prompts(2), sampling)
                assert client.stats.found + client.stats.answers == 2
            return len(at.asked) - before

        assert ask() == 2
        assert ask() == 0, "another client on the same journal"
        assert ask(concurrency=1, retries=0, timeout_s=5.0, url=at.url + "/") == 0, "no answer depends on these"
        assert [ask(Sampling(seed=1)), ask(Sampling(temperature=0.5)), ask(Sampling(stop=("a",))), ask(model="k"),
                ask(extra_body={"a": 1}), ask(url=at.url + "/v2"), ask()] == [2, 2, 2, 2, 2, 2, 0]
        with Client(settings(at, journal=path)) as client:
            client.generate([prompts(1)[0]] * 3, Sampling())
            assert (client.stats.found, client.stats.answers) == (1, 2)


def test_progress_counts_what_is_in_the_journal(tmp_path: Path) -> None:
    with FakeEndpoint() as at, Client(settings(at, journal=str(tmp_path / "j"), concurrency=3)) as client:
        journal = client._journal
        assert journal is not None
        heard: list[tuple[int, int, bool]] = []
        client.generate(prompts(4), Sampling())

        def progress(done: int, all: int) -> None:
            heard.append((done, all, len(journal) - 1 >= done))  # one entry is the answers' mean length

        client.generate(prompts(9), Sampling(), progress=progress)
        assert [(done, all) for done, all, _ in heard] == [(i, 9) for i in range(4, 10)]
        assert all(durable for *_, durable in heard)


CHILD = """
import sys
from fathom.core.chat import Message, Sampling
from fathom.core.client import Client, ClientSettings
url, path = sys.argv[1:]
prompts = [[Message("user", f"{i} + {i}")] for i in range(60)]
with Client(ClientSettings(url=url, model="m", concurrency=8, journal=path)) as client:
    found = client.generate(prompts, Sampling(), n=2)
print([[c.text for c in row] for row in found])
"""


def _kill_often(path: Path, kills: int, seed: int) -> None:
    when = random.Random(seed)

    def script(asked: Asked, number: int) -> Any:
        if number == due[0]:
            os.kill(child.pid, signal.SIGKILL)
        return reply(asked)

    with FakeEndpoint(delay=0.02) as at:
        whole = subprocess.run([sys.executable, "-c", CHILD, at.url, path / "whole"], capture_output=True, text=True)
        assert whole.returncode == 0, whole.stderr
        assert len(at.asked) == 60
    with FakeEndpoint(script, delay=0.02) as at:
        due, before, killed = [0], 0, 0
        for kill in range(kills):
            left = 60 - len(Counter(asked.name for asked in at.asked))
            due[0] = len(at.asked) + when.randrange(1, max(2, left // (kills - kill) + 4))
            child = subprocess.Popen([sys.executable, "-c", CHILD, at.url, path / "j"], stdout=subprocess.DEVNULL)
            if child.wait(60) == 0:  # so little was left that it came through
                continue
            assert child.returncode == -signal.SIGKILL
            killed += 1
            time.sleep(0.1)  # what it had sent before comes in
            again = len(at.asked) - len({asked.name for asked in at.asked})
            assert again - before <= 8, "at most those in flight are asked again"
            before = again
        due[0] = -1
        assert killed >= 0.8 * kills and before > 0, "the test kills where it hurts"
        last = subprocess.run([sys.executable, "-c", CHILD, at.url, path / "j"], capture_output=True, text=True)
        assert last.returncode == 0, last.stderr
        assert last.stdout == whole.stdout, "as if nothing had happened"
        counts = Counter(asked.name for asked in at.asked)
        assert len(counts) == 60 and sum(counts.values()) - 60 <= 8 * kills
        asked_before = len(at.asked)
        subprocess.run([sys.executable, "-c", CHILD, at.url, path / "j"], check=True, stdout=subprocess.DEVNULL)
        assert len(at.asked) == asked_before


@pytest.mark.kill
def test_nothing_is_paid_twice_after_a_kill(memory_path: Path) -> None:
    _kill_often(memory_path, 5, seed=1)


@pytest.mark.kill
@pytest.mark.long
def test_nothing_is_paid_twice_after_twenty_kills(memory_path: Path) -> None:
    _kill_often(memory_path, 20, seed=2)


# Endings.


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_progress_can_stop_and_nothing_in_flight_is_lost(tmp_path: Path) -> None:
    def stop(done: int, all: int) -> None:
        raise Stopped(f"enough after {done}")

    with FakeEndpoint(delay=0.05) as at, Client(settings(at, concurrency=8, journal=str(tmp_path / "j"))) as client:
        before = _threads()
        with pytest.raises(Stopped, match="enough after 1"):
            client.generate(prompts(40), Sampling(), progress=stop)
        assert _threads() == before
        asked = len(at.asked)
        assert asked < 40
        client.generate(prompts(40), Sampling())
        assert len(at.asked) == 40, "what was in flight was kept"


def test_it_runs_within_a_running_loop() -> None:
    async def notebook() -> list[list[Completion]]:
        return client.generate(prompts(2), Sampling())

    async def failing() -> None:
        client.generate(prompts(1), Sampling(seed=3))

    with FakeEndpoint() as at, Client(settings(at, retries=0)) as client:
        before = _threads()
        assert len(asyncio.run(notebook())) == 2
        at.script = lambda asked, number: Status(500)
        with pytest.raises(EndpointFailed):
            asyncio.run(failing())
        assert _threads() == before


def test_an_answer_that_came_is_kept_though_its_request_is_cancelled(tmp_path: Path) -> None:
    async def cancelled(when: int) -> None:
        writer = Writer(journal, "lengths")
        tasks = [asyncio.create_task(writer.put({f"{when}/{i}": i}, 3)) for i in range(5)]
        for _ in range(when):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # the writer's own too, as a second Ctrl-C does
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):
            await writer.close()

    with Journal(tmp_path / "j") as journal:
        for when in range(1, 6):
            asyncio.run(cancelled(when))
            assert [journal.get(f"{when}/{i}") for i in range(5)] == list(range(5)), when
        lengths = journal.get("lengths")
        assert lengths["answers"] >= 25 and lengths["tokens"] == 3 * lengths["answers"]


def test_a_journal_that_cannot_be_written_stops_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint() as at, Client(settings(at, concurrency=2, journal=str(tmp_path / "j"))) as client:
        def full(self: Journal, values: Any) -> None:
            raise Stopped("j: the disk is full")

        monkeypatch.setattr(Journal, "put_many", full)
        with pytest.raises(Stopped, match="the disk is full"):
            client.generate(prompts(20), Sampling())
        assert len(at.asked) <= 4, "no more is paid for than can be kept"


INTERRUPTED = """
import asyncio, sys, threading
from fathom.core.chat import Message, Sampling
from fathom.core.client import Client, ClientSettings
url, path, inside = sys.argv[1:]
client = Client(ClientSettings(url=url, model="m", concurrency=4, journal=path))
def ask():
    return client.generate([[Message("user", f"{i}")] for i in range(40)], Sampling())
async def within():
    ask()
try:
    asyncio.run(within()) if inside == "1" else ask()
except KeyboardInterrupt:
    print("stopped", threading.active_count(), flush=True)
"""


@pytest.mark.kill
@pytest.mark.parametrize(("number", "inside"), [(signal.SIGINT, "0"), (signal.SIGINT, "1"), (signal.SIGTERM, "0")])
def test_a_signal_leaves_the_journal_whole(number: signal.Signals, inside: str, memory_path: Path) -> None:
    def script(asked: Asked, count: int) -> Any:
        if count < 12:
            return reply(asked)
        if count == 14:
            os.kill(child.pid, number)

        async def hang(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)
        return hang

    with FakeEndpoint(script) as at:
        child = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, at.url, memory_path / "j", inside], stdout=subprocess.PIPE, text=True)
        told, _ = child.communicate(timeout=20)
        if number == signal.SIGINT:
            assert told == "stopped 1\n" and child.returncode == 0, "no thread is left"
        else:
            assert child.returncode == -signal.SIGTERM
        with Journal(memory_path / "j") as journal:
            assert 12 - 4 <= len(journal) - 1 <= 12
        at.script = lambda asked, count: reply(asked)
        asked = len(at.asked)
        with Client(settings(at, journal=str(memory_path / "j"))) as client:
            client.generate([[Message("user", f"{i}")] for i in range(40)], Sampling())
            assert 28 <= len(at.asked) - asked <= 32
