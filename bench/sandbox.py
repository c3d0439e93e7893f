"""Milliseconds per untrusted program: the sandbox at L1 beside bubblewrap with a fresh Python, two at a time each."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.measure import Pair, interleave
from fathom.judge.sandbox import End, Level, Limits, Program, Sandbox

WORKERS = 2
SMALL = "print(int(input()) + 1)"
HEAVY = """
import numpy, sympy
print(int(sympy.Integer(input()) + int(numpy.ones(1)[0])))
"""


def measure(rounds: int = 5, small: int = 100, heavy: int = 8) -> list[Pair]:
    """Each program reads a number and prints its successor; a round runs the same programs on both sides."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        sys.exit("bwrap: the peer is not installed; apt install bubblewrap")
    pairs = []
    for what, source, count, preload, bar in (
        ("small programs", SMALL, small, (), 2.5),
        ("programs that import numpy and sympy", HEAVY, heavy, ("numpy", "sympy"), 20.0),
    ):
        programs = [Program(source, stdin=str(n), limits=Limits(wall_s=120.0)) for n in range(count)]
        expected = [f"{n + 1}\n".encode() for n in range(count)]
        with Sandbox(workers=WORKERS, preload=preload, require_level=Level.L1) as sandbox:
            def ours(sandbox=sandbox, programs=programs, expected=expected) -> None:
                ran = sandbox.run(programs)
                assert [r.stdout for r in ran] == expected and all(r.ended is End.EXITED for r in ran)

            def theirs(programs=programs, expected=expected, packages=bool(preload)) -> None:
                assert _contained(bwrap, programs, packages) == expected

            seconds = interleave(ours, theirs, rounds, warm=1)
            each = [[1000 * second / count for second in side] for side in seconds]
            rates = [f"{1000 / statistics.median(side):.0f}/s" for side in each]
            pairs.append(Pair(what, *each, bar=bar, unit="ms", notes={"at a time": WORKERS, "rates": rates}))
        print(pairs[-1].line(), flush=True)
    return pairs


def _contained(bwrap: str, programs: Sequence[Program], packages: bool) -> list[bytes]:
    """Each program in namespaces of its own by bubblewrap, in a fresh interpreter without site; its output."""
    stdlib, site = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    bound = [path for path in ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix, stdlib, site) if path]
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--dev", "/dev",
               "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for path in dict.fromkeys(bound):
        command += ["--ro-bind-try", path, path]
    python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    path = f"import sys; sys.path.append({site!r})\n" if packages else ""
    threads = ["--setenv", "OPENBLAS_NUM_THREADS", "1", "--setenv", "OMP_NUM_THREADS", "1"]

    def one(program: Program) -> bytes:
        assert isinstance(program.stdin, str)
        done = subprocess.run([*command, *threads, python, "-I", "-S", "-c", path + program.source],
                              input=program.stdin.encode(), capture_output=True, check=True)
        return done.stdout

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, programs))
