"""256 clients at once against `fathom serve`, with and without others that do what they should not.

`python -m bench.soak`. The server is a process of its own with the command line's own entry; a watch inside it looks at
every abort. 256 clients ask without a pause, and check that every answer is whole. In every second half of a round
there is a process more that reads a byte a second, sends halves of requests and bodies of 10 MB, and resets its streams
at uniformly random tokens; beside it one in a network namespace whose packets stop at random tokens, so that the server
hears nothing more. What both halves are like for the 256 is compared, and the server's memory is sampled every second.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import collections
import contextlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
CLIENTS, VOCABULARY, LONGEST = 256, 267, 1024
BODY = 10_000_000  # the server's limit
P99_BAR, SLOPE_BAR = 1.5, 1.0  # times; MB per minute
SETTLE = 3.0  # seconds after each half that belong to neither
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
NAMESPACE, LINK, SERVER_SIDE, CLIENT_SIDE = "fathom-soak", "fsoak", "10.203.0.1", "10.203.0."
# cache: 4096 blocks of 16 tokens, which the first seconds fill; batch: nobody queues for a place in it
ENGINE = ("cache_gb=0.034", "batch=512")


# the server


def model(directory: Path) -> Path:
    """A model so small that the server around it is what is busy, written to `directory`."""
    from fathom.model import weights
    from fathom.model.config import ModelConfig
    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer

    config = ModelConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, kv_lora_rank=48,
        qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, intermediate_size=128,
        max_position_embeddings=LONGEST)
    words = Tokenizer.train([f"{a} + {b} = {a + b}" for a in range(30) for b in range(30)], VOCABULARY)
    assert words.vocab_size == VOCABULARY
    weights.save(directory, Transformer(config).initialise(0), words)
    return directory


def watched(words: list[str], report: Path) -> None:
    """`fathom` with the command line `words`, every abort looked at; what was seen is in `report` at the end.

    Steps are counted from the moment that a stream's end is asked for to the one in which its blocks are free.
    """
    from fathom import cli
    from fathom.engine.engine import Engine
    from fathom.engine.service import Service, Stream

    seen: dict[str, Any] = {
        "where": collections.Counter(), "steps": collections.Counter(), "held": 0, "slowest_ms": 0.0, "checks": 0,
        "tenths": collections.Counter()}
    begun, checked = 0, 0.0
    asked: dict[Stream, tuple[int, float]] = {}
    step, cancel, drop = Engine.step, Stream.cancel, Service._drop

    def counted(self: Engine) -> Any:
        nonlocal begun
        begun += 1
        return step(self)

    def cancelled(self: Stream) -> None:
        if self.open:  # the end of each request cancels once more
            asked.setdefault(self, (begun, time.perf_counter()))
        cancel(self)

    def dropped(self: Service, stream: Stream) -> None:
        nonlocal checked
        mine = [request for request in stream.requests if request in self._owner]
        queued = [request in self.engine.scheduler.waiting for request in mine]
        drop(self, stream)
        at = asked.pop(stream, None)
        if not mine or at is None:
            return
        seen["steps"][str(begun - at[0])] += 1
        seen["slowest_ms"] = max(seen["slowest_ms"], 1000 * (time.perf_counter() - at[1]))
        for request, waited in zip(mine, queued, strict=True):
            seen["where"]["waiting" if waited else "writing" if request.drawn else "in its prompt"] += 1
            seen["tenths"][str(10 * request.drawn // request.sampling.max_tokens)] += 1
            seen["held"] += request.table is not None
        if time.perf_counter() - checked > 1:
            checked = time.perf_counter()
            self.engine.blocks.check(self.engine.scheduler.tables())
            seen["checks"] += 1

    Engine.step, Stream.cancel, Service._drop = counted, cancelled, dropped  # type: ignore[method-assign]
    atexit.register(lambda: report.write_text(json.dumps(seen)))
    sys.argv = ["fathom", *words]
    cli.main()


class Server:
    """`fathom serve` in a process of its own."""

    def __init__(self, directory: Path, host: str):
        self._watch, self._log = directory / "watch.json", (directory / "log.txt").open("w")
        words = ["serve", str(model(directory / "soaked")), "--port", "0", "--host", host, *ENGINE]
        code = f"from pathlib import Path; from bench import soak; soak.watched({words}, Path({str(self._watch)!r}))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})
        assert self._process.stdout is not None
        found, said = None, ""
        for line in self._process.stdout:
            said += line
            if found := re.search(r"http://[^ ]*:(\d+):", line):
                break
        if found is None:
            self.kill()
            raise RuntimeError(f"the server did not start: {said}{Path(self._log.name).read_text()[-2000:]}")
        self.port, self.pid = int(found[1]), self._process.pid
        while True:  # it says where before it answers there
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                break
            time.sleep(0.1)

    def resident(self) -> int:
        """Bytes that lie in memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    def descriptors(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> dict[str, Any]:
        """Ends it politely: its exit code, and what the watch saw."""
        self._process.terminate()
        code = self._process.wait(60)
        self._log.close()
        return {"exit": code, **json.loads(self._watch.read_text())}

    def kill(self) -> None:
        """Ends it, where something went wrong."""
        self._process.kill()
        self._process.wait()
        self._log.close()


# what is said over a connection


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    """A request's bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(body) if length is None else length).encode() + b"\r\n\r\n" + body


class Ended(Exception):
    """The connection ended before the answer did."""


class Wire:
    """One connection, read as HTTP/1.1 answers come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @staticmethod
    async def to(address: tuple[str, int], source: str | None = None) -> Wire:
        """A fresh connection."""
        local = (source, 0) if source else None
        return Wire(*await asyncio.open_connection(*address, local_addr=local))

    async def answer(self, arrived: Callable[[bytes], bool] = lambda data: True) -> tuple[int, bytes, bytes] | None:
        """Status, head and body of the next answer; `arrived` is shown the bytes of the body as they come, and ends the
        reading where it returns False: then nothing comes back."""
        head, body = await self._head()
        status = int(head.split(b" ", 2)[1])
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if body and not arrived(body):
            return None
        while not (len(body) >= int(length[1]) if length else body.endswith(b"\r\n0\r\n\r\n")):
            data = await self.reader.read(1 << 16)
            if not data:
                raise Ended(f"after {len(body)} bytes of an answer {status}")
            body += data
            if not arrived(data):
                return None
        return status, head, body if length else b"".join(_chunks(body))

    async def _head(self) -> tuple[bytes, bytes]:
        got = b""
        while b"\r\n\r\n" not in got:
            data = await self.reader.read(1 << 16)
            if not data:
                raise Ended("before an answer")
            got += data
        head, _, rest = got.partition(b"\r\n\r\n")
        return head, rest

    def reset(self) -> None:
        """Ends the connection by a TCP reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Ends the connection in order."""
        self.writer.close()


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        size = int(body[at: end], 16)
        yield body[end + 2: end + 2 + size]
        at = end + 4 + size


# those that behave


@dataclass
class Ask:
    """A request, and what its answer must be."""

    path: str
    body: dict[str, Any]

    @staticmethod
    def drawn(dice: random.Random, plain: bool = False) -> Ask:
        """A random one; `plain`: a stream of one completion."""
        kind = 0.0 if plain else dice.random()
        n = 1 if plain else dice.choices((1, 2, 4), (85, 10, 5))[0]
        body: dict[str, Any] = {"n": n, "max_tokens": dice.randint(8, 128), "seed": dice.getrandbits(31),
                                "ignore_eos": dice.random() < 0.5, "stream": kind < 0.85}
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        if dice.random() < 0.1:
            body |= {"presence_penalty": 0.5, "top_p": 0.9}
        if 0.7 <= kind < 0.85:
            text = "".join(dice.choices("0123456789+= ", k=dice.randint(1, 100)))
            return Ask(CHAT, body | {"messages": [{"role": "user", "content": text}], "logprobs": True,
                                     "top_logprobs": dice.randint(0, 3)})
        prompt = [dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 200))]
        if dice.random() < 0.3 and len(prompt) > 40:
            prompt[:40] = range(100, 140)  # a beginning that many share
        return Ask(COMPLETIONS, body | {"prompt": prompt, "logprobs": dice.randint(0, 3)})

    def fault(self, answer: bytes) -> str | None:
        """What an answer lacks; None where it is whole."""
        parts: list[dict[str, Any]]
        if self.body["stream"]:
            events = [event.removeprefix(b"data: ") for event in answer.split(b"\n\n") if event.startswith(b"data: ")]
            if not events or events[-1] != b"[DONE]":
                return f"no [DONE]: {answer[-200:]!r}"
            parts = [json.loads(event) for event in events[:-1]]
            if errors := [part for part in parts if "error" in part]:
                return str(errors[0])
        else:
            parts = [json.loads(answer)]
        usage = parts[-1].get("usage")
        if usage is None:
            return f"no usage: {answer[-200:]!r}"
        tokens = [0] * self.body["n"]
        finish: list[str | None] = [None] * self.body["n"]
        for choice in (choice for part in parts for choice in part["choices"]):
            index, told = choice["index"], choice["logprobs"]
            if finish[index] is not None:
                return f"completion {index} went on after its end"
            tokens[index] += len(told["content" if self.path == CHAT else "tokens"]) if told else 0
            finish[index] = choice["finish_reason"]
        most = self.body["max_tokens"]
        for count, end in zip(tokens, finish, strict=True):
            if not (count == most if end == "length" else end == "stop" and 0 < count <= most):
                return f"{count} tokens of {most}, finish {end}"
            if self.body["ignore_eos"] and end != "length":
                return f"finish {end} with ignore_eos"
        if usage["completion_tokens"] != sum(tokens):
            return f"usage {usage}, {sum(tokens)} tokens"
        if self.path == COMPLETIONS and usage["prompt_tokens"] != len(self.body["prompt"]):
            return f"usage {usage}, {len(self.body['prompt'])} tokens of prompt"
        return None


@dataclass
class Samples:
    """Seconds that the clients of one half waited: for first tokens, and for each one after."""

    first: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))

    def p99(self) -> dict[str, float]:
        """Milliseconds."""
        return {name: 1000 * float(np.percentile(np.asarray(values), 99)) if values else float("nan")
                for name, values in (("first token", self.first), ("between tokens", self.gaps))}


@dataclass
class Clients:
    """Those that behave: each asks, reads, checks, and asks again until `over`."""

    address: tuple[str, int]
    whole: int = 0
    tokens: int = 0
    lost: list[str] = field(default_factory=list)
    errors: int = 0  # answers 500 and the like
    turned_away: int = 0  # 429 and 503
    over: bool = False
    samples: Samples | None = None  # of the half that runs

    async def run(self, seed: int) -> None:
        """One client."""
        dice = random.Random(seed)
        await asyncio.sleep(dice.random())
        wire: Wire | None = None
        while not self.over:
            ask = Ask.drawn(dice)
            try:
                wire = wire or await Wire.to(self.address)
                status, answer = await self._exchange(wire, ask)
            except (OSError, Ended) as error:
                self.lost.append(f"{type(error).__name__}: {error}")
                wire = None
                continue
            if status in (429, 503):
                self.turned_away += 1
                await asyncio.sleep(1)
            elif status != 200:
                self.errors += status >= 500
                self.lost.append(f"{status}: {answer[:200]!r}")
            elif fault := ask.fault(answer):
                self.lost.append(fault)
            else:
                self.whole += 1
            if dice.random() < 0.3:
                wire.close()
                wire = None
        if wire is not None:
            wire.close()

    async def _exchange(self, wire: Wire, ask: Ask) -> tuple[int, bytes]:
        samples, last = self.samples, time.perf_counter()
        timed = ask.body["stream"] and ask.body["n"] == 1  # of several it cannot be told whose token came
        events, skipped = 0, int(ask.path == CHAT)  # the first chunk of a chat has no token

        def arrived(data: bytes) -> bool:
            nonlocal events, last
            now, new = time.perf_counter(), data.count(b"\n\n")
            self.tokens += new
            if timed and new:
                fresh = events + new - max(events, skipped)
                if fresh > 0 and events <= skipped:
                    if samples is not None and samples is self.samples:
                        samples.first.append(now - last)
                    last = now
                elif fresh > 0:
                    if self.samples is not None:
                        self.samples.gaps.extend((now - last, *[0.0] * (fresh - 1)))
                    last = now
                events += new
            return True

        wire.writer.write(post(ask.path, json.dumps(ask.body).encode()))
        got = await wire.answer(arrived)
        assert got is not None
        return got[0], got[2]


# those that do not


class Adversary:
    """Does what clients should not, until `until`; `did` counts it, answers by status among it."""

    def __init__(self, address: tuple[str, int], until: float, seed: int):
        self.address, self.until, self.dice = address, until, random.Random(seed)
        self.did: collections.Counter[str] = collections.Counter()
        ids = b'{"prompt":[' + b"17," * (BODY // 3)
        text = b'{"prompt":"' + b"2 + 3 = 5. " * (BODY // 11)
        self._large = {  # what it is, and its bytes
            "text of 10 MB": post(COMPLETIONS, text[:BODY - 2] + b'"}'),
            "ids of 10 MB": post(COMPLETIONS, ids[:(BODY - 14) // 3 * 3 + 11 - 3] + b"17]}"),
            "10 MB and 1": post(COMPLETIONS, text[:BODY - 1] + b'"}'),
            "10 MB and 1, not JSON": post(CHAT, b"[" * (BODY + 1)),
            "10 MB of brackets": post(CHAT, b"[" * BODY),
        }

    async def run(self) -> None:
        """All of it at once."""
        loops: list[tuple[int, Callable[[], Awaitable[None]], float]] = [  # so many, what, the longest pause between
            (8, self.leave, 1.0), (3, self.leave_queued, 1.0), (8, self.read_slowly, 1.0), (1, self.read_hardly, 20.0),
            (4, self.say_nothing, 2.0), (4, self.send_half_a_head, 2.0), (4, self.send_half_a_body, 2.0),
            (1, self.send_much, 2.0), (1, self.send_forever, 4.0), (2, self.err, 0.5)]
        await asyncio.gather(*(self._again(what, pause) for count, what, pause in loops for _ in range(count)))

    async def _again(self, what: Callable[[], Awaitable[None]], pause: float) -> None:
        while (left := self.until - time.monotonic()) > 0:
            await asyncio.sleep(min(self.dice.uniform(0, pause), left))
            try:
                async with asyncio.timeout(max(self.until - time.monotonic(), 0.1)):
                    await what()
            except TimeoutError:  # the process ends, and its sockets with it
                self.did[f"{what.__name__}: still at it at the end"] += 1
            except (OSError, Ended):  # the server may cut such connections whenever it likes
                self.did[f"{what.__name__}: cut by the server"] += 1

    async def leave(self, wire: Wire | None = None) -> None:
        """Ends a stream at a random token, by a reset or in order."""
        ask = Ask.drawn(self.dice, plain=True)
        left = self.dice.randrange(ask.body["max_tokens"])

        def arrived(data: bytes) -> bool:
            nonlocal left
            left -= data.count(b"\n\n")
            return left > 0

        wire = await Wire.to(self.address)
        wire.writer.write(post(ask.path, json.dumps(ask.body).encode()))
        whole = await wire.answer(arrived) is not None
        how = self.dice.choice((wire.reset, wire.close))
        how()
        self.did["stream that ended first" if whole else f"{how.__name__} at a random token"] += 1

    async def leave_queued(self) -> None:
        """Goes before the first token, often before the engine has heard of the request."""
        wire = await Wire.to(self.address)
        ask = Ask.drawn(self.dice)
        wire.writer.write(post(ask.path, json.dumps(ask.body).encode()))
        await wire.writer.drain()
        await asyncio.sleep(self.dice.choice((0.0, 0.01, 0.1)))
        wire.reset()
        self.did["reset before the first token"] += 1

    async def read_slowly(self, more: dict[str, Any] | None = None) -> None:
        """Reads a byte a second."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        with raw:
            await loop.sock_connect(raw, self.address)
            ask = Ask(COMPLETIONS, Ask.drawn(self.dice, plain=True).body | {"max_tokens": 128} | (more or {}))
            await loop.sock_sendall(raw, post(ask.path, json.dumps(ask.body).encode()))
            self.did["byte a second" + (", megabytes under way" if more else "")] += 1
            while (left := self.until - time.monotonic()) > 0:
                if not await asyncio.wait_for(loop.sock_recv(raw, 1), max(left, 0.1)):
                    raise Ended("a slow reader was dropped")
                await asyncio.sleep(min(1.0, left))

    async def read_hardly(self) -> None:
        """As slowly, where more comes than kernels keep: the server must drop it."""
        await self.read_slowly({"n": 16, "max_tokens": 800, "logprobs": 20, "ignore_eos": True})

    async def say_nothing(self) -> None:
        """Connects, and that is all."""
        await self._hold(b"", "silent connection")

    async def send_half_a_head(self) -> None:
        """Stops in the middle of the request's head."""
        await self._hold(post(COMPLETIONS, b"")[:60], "half of a head")

    async def send_half_a_body(self) -> None:
        """Stops in the middle of the request's body."""
        body = json.dumps(Ask.drawn(self.dice).body).encode()
        await self._hold(post(COMPLETIONS, body[: len(body) // 2], len(body)), "half of a body")

    async def _hold(self, data: bytes, what: str) -> None:
        wire = await Wire.to(self.address)
        wire.writer.write(data)
        self.did[what] += 1
        try:
            async with asyncio.timeout(max(self.until - time.monotonic(), 0.1)):
                await self._told(wire)
        except TimeoutError:
            self.dice.choice((wire.reset, wire.close))()

    async def send_much(self) -> None:
        """A body as large as may be, or larger by a byte."""
        what = self.dice.choice(sorted(self._large))
        wire = await Wire.to(self.address)
        self.did[what] += 1
        wire.writer.write(self._large[what])
        await self._told(wire)

    async def send_forever(self) -> None:
        """A body that says no length and has no end."""
        wire = await Wire.to(self.address)
        self.did["endless body"] += 1
        wire.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
                          "Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
        told = asyncio.create_task(self._told(wire))
        try:
            while not told.done():
                wire.writer.write(part)
                await wire.writer.drain()
                await asyncio.sleep(0)
        except OSError:
            self.did["endless body: cut"] += 1
        await told

    async def err(self) -> None:
        """Something wrong with the request."""
        fine = Ask.drawn(self.dice, plain=True).body | {"prompt": [1, 2]}
        wire = await Wire.to(self.address)
        wire.writer.write(self.dice.choice((
            post(COMPLETIONS, b"{"), post(COMPLETIONS, b"\xff\xfe"), post(COMPLETIONS, b"[" * 5000), post(CHAT, b"{}"),
            post(COMPLETIONS, json.dumps(fine | {"max_tokens": -1}).encode()),
            post(COMPLETIONS, json.dumps(fine | {"prompt": [10**9]}).encode()),
            post(COMPLETIONS, json.dumps(fine | {"prompt": [VOCABULARY]}).encode()),
            post(COMPLETIONS, json.dumps(fine | {"max_tokens": 10**6}).encode()),
            post(COMPLETIONS, json.dumps(fine | {"model": "another"}).encode()),
            post("/nowhere", b"{}"), b"no HTTP at all\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n")))
        await self._told(wire)

    async def _told(self, wire: Wire) -> None:
        got = await wire.answer()
        if got is not None:
            self.did[f"answered {got[0]}"] += 1
        wire.close()


class Vanisher(Adversary):
    """Inside the namespace: connections from which, at a random token, no packet comes any more, not even an end."""

    async def run(self) -> None:
        await asyncio.gather(*(self._vanish(f"{CLIENT_SIDE}{number}") for number in range(10, 22)))

    async def _vanish(self, source: str) -> None:
        await asyncio.sleep(self.dice.uniform(0, max(self.until - time.monotonic(), 0.1)))
        ask = Ask.drawn(self.dice, plain=True)
        left = self.dice.randrange(ask.body["max_tokens"])

        def arrived(data: bytes) -> bool:
            nonlocal left
            left -= data.count(b"\n\n")
            return left > 0

        wire = await Wire.to(self.address, source)
        wire.writer.write(post(ask.path, json.dumps(ask.body).encode()))
        whole = await wire.answer(arrived) is not None
        _ip("rule", "add", "from", source, "blackhole")
        self.did["vanished after its stream" if whole else "vanished at a random token"] += 1


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def namespace() -> Iterator[bool]:
    """A network namespace joined to this one; False where this user or kernel has none, and nobody can vanish."""
    made = False
    try:
        try:
            _ip("netns", "add", NAMESPACE)
            made = True
            _ip("link", "add", LINK, "type", "veth", "peer", "name", "there", "netns", NAMESPACE)
            _ip("addr", "add", f"{SERVER_SIDE}/24", "dev", LINK)
            _ip("link", "set", LINK, "up")
            for number in range(10, 22):
                _ip("-n", NAMESPACE, "addr", "add", f"{CLIENT_SIDE}{number}/24", "dev", "there")
            _ip("-n", NAMESPACE, "link", "set", "there", "up")
        except (OSError, FileNotFoundError) as error:
            print(f"nobody vanishes without an end in this run: {error}", flush=True)
            yield False
        else:
            yield True
    finally:
        if made:
            subprocess.run(["ip", "link", "del", LINK], capture_output=True)
            subprocess.run(["ip", "netns", "del", NAMESPACE], capture_output=True)


def disturb(kind: str, port: int, seconds: float, seed: int) -> None:
    """The adversary's process: what it did is its output."""
    here = kind == "adversary"
    made = (Adversary if here else Vanisher)(
        ("127.0.0.1" if here else SERVER_SIDE, port), time.monotonic() + seconds, seed)
    asyncio.run(made.run())
    print(json.dumps(made.did))


# the whole


@dataclass
class Soak:
    """What was measured."""

    seconds: float
    quiet: list[dict[str, float]] = field(default_factory=list)  # p99 of each half, milliseconds
    disturbed: list[dict[str, float]] = field(default_factory=list)
    whole: int = 0
    tokens_per_second: float = 0.0
    lost: list[str] = field(default_factory=list)
    errors: int = 0
    turned_away: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    books: dict[str, float] = field(default_factory=dict)
    emptied_s: float = 0.0  # from the last client's end until the cache was free
    descriptors: tuple[int, int] = (0, 0)  # before and after
    resident: list[tuple[float, float]] = field(default_factory=list)  # seconds since the start, MB
    warm_s: float = 0.0
    did: dict[str, int] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)
    vanishing: bool = False

    @property
    def slope(self) -> float:
        """MB per minute after the warm-up, by least squares."""
        times, sizes = zip(*(sample for sample in self.resident if sample[0] >= self.warm_s), strict=True)
        return 60 * float(np.polyfit(times, sizes, 1)[0])

    def ratio(self, what: str) -> float:
        """Of the medians over the rounds: p99 with the adversary against p99 without."""
        with_it, without = (float(np.median([one[what] for one in side])) for side in (self.disturbed, self.quiet))
        return with_it / without

    def faults(self) -> list[str]:
        """What must not be, whatever the machine: lost requests, errors 5xx, blocks that stay, books out of balance."""
        found = [f"lost: {one}" for one in self.lost]
        found += [f"{count} answers {status}" for status, count in self.statuses.items()
                  if status.startswith("5") and status != "503"]
        books, watch = self.books, self.watch
        if books["blocks_used"] or books["running"] or books["waiting"] or books["requests_running"]:
            found.append(f"not empty at the end: {books}")
        if books["started"] != books["finished"] + books["cancelled"] + books["failed"]:
            found.append(f"books: {books}")
        if books["failed"] or books["failures"]:
            found.append(f"the engine failed: {books}")
        if late := {steps: count for steps, count in watch["steps"].items() if int(steps) > 1}:
            found.append(f"blocks freed late, steps: aborts {late}")
        if watch["held"] or watch["exit"]:
            found.append(f"tables held after an abort: {watch['held']}; exit {watch['exit']}")
        if self.descriptors[1] > self.descriptors[0]:
            found.append(f"sockets left open: {self.descriptors[1] - self.descriptors[0]}")
        return found

    def table(self) -> str:
        """All of it, to be read."""
        lines = ["| what | figure | bar |", "|---|---|---|",
                 f"| requests whole / lost | {self.whole} / {len(self.lost)} | 0 lost |",
                 f"| tokens a second | {self.tokens_per_second:.0f} | |",
                 f"| answers by status | {self.statuses} | 0 × 500 |",
                 f"| turned away (429, 503) of the well-behaved | {self.turned_away} | |",
                 f"| aborts: steps until blocks were free | {self.watch['steps']} | ≤ 1 |",
                 f"| aborted while | {self.watch['where']}, slowest {self.watch['slowest_ms']:.0f} ms | |",
                 f"| tenth of the completion reached | {dict(sorted(self.watch['tenths'].items()))} | |",
                 f"| at the end | {self.books}, empty after {self.emptied_s:.1f} s | 0 used |",
                 f"| sockets before / after | {self.descriptors[0]} / {self.descriptors[1]} | equal |",
                 f"| memory | {self.resident[-1][1]:.0f} MB, {self.slope:+.2f} MB/min | < {SLOPE_BAR:g} |"]
        for what in ("first token", "between tokens"):
            sides = [float(np.median([one[what] for one in side])) for side in (self.quiet, self.disturbed)]
            lines.append(f"| p99 {what}, quiet → disturbed | {sides[0]:.0f} → {sides[1]:.0f} ms, "
                         f"{self.ratio(what):.2f}× | ≤ {P99_BAR:g}× |")
        return "\n".join([*lines, f"| the adversary | {self.did} | |", f"| vanishing | {self.vanishing} | |",
                          *(f"FAULT {fault}" for fault in self.faults()[:20])])


def soak(
    seconds: float, rounds: int, warm: float = 20.0, clients: int = CLIENTS, seed: int = 0,
    say: Callable[[str], object] = print,
) -> Soak:
    """Rounds of `seconds` without and with the adversary after a warm-up."""
    with tempfile.TemporaryDirectory() as folder, namespace() as vanishing:
        server = Server(Path(folder), "0.0.0.0" if vanishing else "127.0.0.1")
        try:
            empty = Soak(seconds, warm_s=warm, vanishing=vanishing)
            made = asyncio.run(_Run(server, empty, clients, seed, say).all(rounds))
            made.watch = server.stop()
        except BaseException:
            server.kill()
            raise
    return made


class _Run:
    def __init__(self, server: Server, made: Soak, clients: int, seed: int, say: Callable[[str], object]):
        self.server, self.made, self.seed, self.say = server, made, seed, say
        self.clients = Clients(("127.0.0.1", server.port))
        self.count, self.did = clients, collections.Counter[str]()

    async def all(self, rounds: int) -> Soak:
        made, clients, began = self.made, self.clients, time.monotonic()
        before = self.server.descriptors()
        sampler = asyncio.create_task(self._sample(began))
        group = [asyncio.create_task(clients.run(self.seed * 1000 + number)) for number in range(self.count)]
        await self._half(True, rounds, made.warm_s)  # memory that only the adversary's bodies take is part of it
        made.warm_s = time.monotonic() - began
        for number in range(rounds):
            for disturbed in (number % 2 == 1, number % 2 == 0):  # who comes first changes
                side = made.disturbed if disturbed else made.quiet
                side.append(await self._half(disturbed, number, made.seconds))
                self.say(f"round {number + 1} {'disturbed' if disturbed else 'quiet'}: p99 " + ", ".join(
                    f"{name} {value:.0f} ms" for name, value in side[-1].items()) + f"; whole {clients.whole}, lost "
                    f"{len(clients.lost)}, {made.resident[-1][1]:.0f} MB")
        made.tokens_per_second = clients.tokens / (time.monotonic() - began)
        clients.over = True
        await asyncio.gather(*group)
        sampler.cancel()
        over = time.monotonic()
        await self._until(lambda books: books["blocks_used"] == 0, 20)
        made.emptied_s = time.monotonic() - over
        # the last ones to vanish are noticed by keepalive and by bytes that nobody acknowledges: wire.IDLE and the like
        made.books = await self._until(lambda books: self.server.descriptors() <= before + 1, 50)
        closing = time.monotonic()  # the one more is the connection that asked for the books, which ends by itself
        while self.server.descriptors() > before and time.monotonic() < closing + 10:
            await asyncio.sleep(0.1)
        made.descriptors = before, self.server.descriptors()
        made.whole, made.lost, made.errors = clients.whole, clients.lost, clients.errors
        made.turned_away, made.did = clients.turned_away, dict(sorted(self.did.items()))
        return made

    async def _half(self, disturbed: bool, number: int, seconds: float) -> dict[str, float]:
        samples = self.clients.samples = Samples()
        processes: list[asyncio.subprocess.Process] = []
        if disturbed:
            for kind in ("adversary", "vanisher") if self.made.vanishing else ("adversary",):
                inside = ["ip", "netns", "exec", NAMESPACE] if kind == "vanisher" else []
                words = [kind, self.server.port, seconds, self.seed + number]
                processes.append(await asyncio.create_subprocess_exec(
                    *inside, sys.executable, "-c", f"from bench import soak; soak.disturb(*{words})",
                    stdout=asyncio.subprocess.PIPE, cwd=ROOT))
        await asyncio.sleep(seconds)
        self.clients.samples = None
        for process in processes:
            output, _ = await process.communicate()
            if process.returncode:
                raise RuntimeError(f"the adversary failed with {process.returncode}")
            self.did.update(json.loads(output))
        for rule in range(10, 22) if disturbed and self.made.vanishing else ():
            subprocess.run(["ip", "-n", NAMESPACE, "rule", "del", "from", f"{CLIENT_SIDE}{rule}"], capture_output=True)
        await asyncio.sleep(SETTLE)
        return samples.p99()

    async def _sample(self, began: float) -> None:
        while True:
            self.made.resident.append((time.monotonic() - began, self.server.resident() / 1e6))
            await asyncio.sleep(1)

    async def _until(self, holds: Callable[[dict[str, float]], bool], seconds: float) -> dict[str, float]:
        end = time.monotonic() + seconds
        while not holds(books := await self._books()) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return books

    async def _books(self) -> dict[str, float]:
        wire = await Wire.to(self.clients.address)
        wire.writer.write(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
        got = await wire.answer()
        wire.close()
        assert got is not None
        text = got[2].decode()
        values = {name: float(value) for name, value in re.findall(r"^(fathom_\S+) (\S+)$", text, re.MULTILINE)}
        statuses = collections.Counter[str]()
        for status, count in re.findall(r'^fathom_http_requests_total\{.*status="(\d+)"\} (\S+)', text, re.MULTILINE):
            statuses[status] += int(float(count))
        self.made.statuses = dict(sorted(statuses.items()))
        engine = {name: values[f"fathom_engine_{name}"] for name in ("blocks_used", "running", "waiting")}
        ended = {name: values[f'fathom_requests_ended_total{{outcome="{name}"}}']
                 for name in ("finished", "cancelled", "failed")}
        return {**engine, **ended, "started": values["fathom_requests_started_total"],
                "requests_running": values["fathom_requests_running"],
                "failures": values["fathom_engine_failures_total"],
                "preemptions": values["fathom_engine_preemptions_total"]}


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints and saves."""
    from bench.measure import RESULTS
    from fathom.core import machine

    asked = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    asked.add_argument("--seconds", type=float, default=60.0, help="of each half of a round")
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--warm", type=float, default=20.0, help="seconds before the first round, the adversary there")
    asked.add_argument("--clients", type=int, default=CLIENTS)
    asked.add_argument("--out", type=Path, default=RESULTS / "soak.json", help="where the figures are saved")
    given = asked.parse_args(words)
    made = soak(given.seconds, given.rounds, given.warm, given.clients, say=lambda line: print(line, flush=True))
    print(made.table())
    about = {"device": machine.device(), "commit": machine.commit(), "versions": machine.versions(),
             "clients": given.clients, "engine": ENGINE, "slope_mb_per_minute": made.slope,
             "ratio_first_token": made.ratio("first token"), "ratio_between_tokens": made.ratio("between tokens"),
             "faults": made.faults()}
    given.out.write_text(json.dumps({**about, **asdict(made)}, indent=1, ensure_ascii=False) + "\n")
    print(f"saved in {given.out}")


if __name__ == "__main__":
    main()
