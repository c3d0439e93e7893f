"""A tiny world for tests that run whole systems: settings, processes to run them in, what must be equal afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fathom.core import disk
from fathom.core.chat import Message
from fathom.core.records import RecordStore
from fathom.core.run import read_manifest
from fathom.judge.verdict import Verdict
from fathom.tasks.task import Problem

HERE = Path(__file__).parent
SUMS = {"task": "gym:chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
MODEL = {
    "preset": "tiny", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "intermediate_size": 64, "n_routed_experts": 4,
    "moe_intermediate_size": 16, "max_position_embeddings": 128,
}
# one thread, so that children neither differ nor wait for each other; digits.py has the reward that GRPO uses
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep),
}


class Broken:
    """A task whose judge never manages to judge."""

    name = "small:Broken"

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        """Sums."""
        for i in range(limit or 10):
            yield Problem(f"p{i}", (Message("user", f"{i} + {i} ="),), str(2 * i), self.name)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """No verdict at all."""
        return [Verdict.failed("out of order") for _ in items]


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code or minus the signal, seconds, whether its signal was sent, what it printed."""

    code: int
    seconds: float
    sent: bool
    said: str


class Forks:
    """One row of requests to forked.py: command lines run in forked children, one at a time; safe for threads."""

    def __init__(self, logs: Path, requests: int, answers: int):
        self._logs, self._number, self._turn = logs, 0, threading.Lock()
        self._requests, self._answers = os.fdopen(requests, "w"), os.fdopen(answers)

    def run(self, *words: object, **request: Any) -> Ended:
        """Runs `fathom *words`; for the rest of the request see forked.py."""
        with self._turn:
            self._number += 1
            log = self._logs / f"{id(self)}-{self._number}.txt"
            log.touch()  # a child may be killed before it opens it
            line = {"argv": [str(word) for word in words], "log": str(log), **request}
            self._requests.write(json.dumps(line) + "\n")
            self._requests.flush()
            answer = json.loads(self._answers.readline())
            return Ended(**answer, said=log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        """Ends the row."""
        self._requests.close()
        self._answers.close()


def two_forks(logs: Path) -> tuple[subprocess.Popen[bytes], tuple[Forks, Forks]]:
    """A warmed process (forked.py) and its two rows of requests."""
    pipes = [(os.pipe(), os.pipe()) for _ in range(2)]
    theirs = [(requests[0], answers[1]) for requests, answers in pipes]
    server = subprocess.Popen(
        [sys.executable, str(HERE / "forked.py"), *(f"{r}:{a}" for r, a in theirs)], env=ENVIRONMENT, cwd=logs,
        pass_fds=[file for row in theirs for file in row], stdin=subprocess.DEVNULL,
    )
    for row in theirs:
        for file in row:
            os.close(file)
    first, second = (Forks(logs, requests[1], answers[0]) for requests, answers in pipes)
    return server, (first, second)


def plain(directory: Path, *words: object) -> Ended:
    """Runs `python -m fathom *words` in a process of its own, in `directory`."""
    done = subprocess.run(
        [sys.executable, "-m", "fathom", *(str(word) for word in words)], env=ENVIRONMENT, capture_output=True,
        cwd=directory, timeout=120, check=False,
    )
    return Ended(done.returncode, 0.0, False, (done.stdout + done.stderr).decode("utf-8", "replace"))


@dataclass(frozen=True)
class Small:
    """The tiny world: a tokenizer and a base model under `root`, and processes to run things in."""

    root: Path
    server: subprocess.Popen[bytes]
    forks: tuple[Forks, Forks]

    def close(self) -> None:
        """Ends the processes."""
        for forks in self.forks:
            forks.close()
        self.server.wait(30)

    def settings(self, system: str, **changes: Any) -> Path:
        """A settings file of a system, with some settings changed; the same for equal changes."""
        values = {
            "tokenizer": {"data": [{**SUMS, "think": "steps", "count": 200}], "vocab_size": 280},
            "pretrain": {
                "model": MODEL, "tokenizer": str(self.root / "words" / "model"),
                "data": [{**SUMS, "think": "steps", "count": 120}], "tokens": 15_360, "tokens_per_step": 512,
                "sequence_length": 128, "held_out": 12, "held_out_every": 7, "checkpoints": {"every": 5},
            },
            "sft": {
                "init": str(self.root / "base" / "model"), "data": [{**SUMS, "think": "steps", "count": 60}],
                "tokens_per_step": 512, "sequence_length": 128, "epochs": 4, "checkpoints": {"every": 2},
            },
            "grpo": {
                "init": str(self.root / "base" / "model"), "tasks": [SUMS], "steps": 20, "problems": 4, "group": 4,
                "sampling": {"max_tokens": 16}, "rewards": {"accuracy": 1.0, "digits:share": 1.0}, "kl": 0.01,
                "optim": {"lr": 0.003}, "checkpoints": {"every": 5}, "samples_every": 1,
            },
            "extend": {
                "init": str(self.root / "base" / "model"), "data": [{**SUMS, "think": "steps", "count": 120}],
                "phases": [{"length": 160, "steps": 5}, {"length": 256, "steps": 5, "lr": 0.0005}],
                "tokens_per_step": 512, "mask_documents": False, "optim": {"lr": 0.001, "schedule": "constant"},
                "proof": {"texts": 4, "margin": 9, "lengths": [128, 160], "depths": [0, 1], "samples": 1, "others": 0,
                          "needle_mean": 0, "needle_worst": 0},
                "held_out_every": 3, "checkpoints": {"every": 3},
            },
            "evaluate": {
                "model": str(self.root / "base" / "model"), "tasks": [SUMS], "problems": 24, "k": 2, "chunk": 5,
                "sampling": {"max_tokens": 16},
            },
            "distill": {
                "init": str(self.root / "base" / "model"), "tasks": [SUMS], "problems": 24, "n": 2, "chunk": 5,
                "keep": "all", "sampling": {"max_tokens": 16},
            },
        }[system] | changes
        text = json.dumps(values)
        path = self.root / f"{system}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        path.write_text(text)
        return path


def build(root: Path) -> Small:
    """The tiny world under `root`: a tokenizer, and a base model of 30 steps in `root/base`."""
    (root / "logs").mkdir()
    small = Small(root, *two_forks(root / "logs"))
    for system, name in (("tokenizer", "words"), ("pretrain", "base")):
        done = small.forks[0].run(system, small.settings(system), "--dir", root / name)
        assert done.code == 0, done.said
    return small


def kept(directory: Path) -> dict[str, Any]:
    """What two runs of the same work must agree on, in words that a failed comparison can show.

    Everything is verified on the way: checksums, ledgers, no leftovers of killed writers anywhere.
    """
    manifest = read_manifest(directory)
    found: dict[str, Any] = {
        "status": manifest["status"], "fingerprint": manifest["fingerprint"], "summary": manifest["summary"],
        "leftovers": sorted(str(p.relative_to(directory)) for p in directory.rglob(".tmp-*")),
    }
    for name in ("metrics.jsonl", "scores.json"):
        if (directory / name).exists():
            found[name] = (directory / name).read_text(encoding="utf-8")
    for folder in [directory / "model", directory / "adapter", *sorted((directory / "checkpoints").glob("*"))]:
        if folder.exists():
            disk.verify(folder)
            found[str(folder.relative_to(directory))] = disk.digest(folder)
    for path in (path for folder in ("samples", "proof") for path in sorted((directory / folder).glob("*"))):
        found[f"{path.parent.name}/{path.name}"] = path.read_text(encoding="utf-8")
    if (directory / "records").exists():
        store = RecordStore(directory / "records")
        ledger = store.ledger()
        ledger.check()
        found["ledger"] = str(ledger)
        found["kept"] = rows_digest((r.id, r.source, r.data) for r in store.kept())
        found["rejected"] = rows_digest((r.id, r.source, r.data, reason) for r, reason in store.rejected())
    return found


class Twins:
    """Uninterrupted runs, each made once."""

    def __init__(self, small: Small):
        self.small, self.seconds = small, cache(self._made)

    def of(self, system: str, **changes: Any) -> dict[str, Any]:
        """What `kept` says of an uninterrupted run of a system."""
        self.seconds(self.small.settings(system, **changes), system)
        return kept(self.directory(self.small.settings(system, **changes)))

    def directory(self, settings: Path) -> Path:
        """Where the twin of a settings file lies."""
        return self.small.root / f"twin-{settings.stem}"

    def _made(self, settings: Path, system: str) -> float:
        done = self.small.forks[0].run(system, settings, "--dir", self.directory(settings), commit_every=50)
        assert done.code == 0, done.said
        return done.seconds


def rows_digest(rows: Any) -> str:
    """Number and sha256 of rows, in their order."""
    running, number = hashlib.sha256(), 0
    for row in rows:
        running.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        number += 1
    return f"{number} rows {running.hexdigest()}"


def differing(ours: Mapping[str, Any], twin: Mapping[str, Any]) -> list[str]:
    """What differs between two results of `kept`, shortened."""
    return [
        f"{name}: {str(ours.get(name))[:200]!r} ≠ {str(twin.get(name))[:200]!r}"
        for name in sorted({*ours, *twin}) if ours.get(name) != twin.get(name)
    ]


SIGKILL, SIGTERM, SIGINT = (int(number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
