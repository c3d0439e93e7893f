"""The sandbox tells every end apart and keeps programs to themselves."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandboxes import LINUX, ROOT, opened, run, told

from fathom.core.errors import UsageError
from fathom.judge.sandbox import End, Level, Limits, Program, Sandbox
from fathom.judge.sandbox.server import out_of_time
from fathom.judge.sandbox.wire import Seen

ENDS = {
    "nothing": ("", (End.EXITED, 0, None, None)),
    "sys.exit": ("import sys; sys.exit(3)", (End.EXITED, 3, None, None)),
    "exit": ("exit()", (End.EXITED, 0, None, None)),
    "exit by text": ("raise SystemExit('no')", (End.EXITED, 1, None, None)),
    "exit below zero": ("raise SystemExit(-1)", (End.EXITED, 255, None, None)),
    "os._exit": ("import os; os._exit(1)", (End.EXITED, 1, None, None)),
    "exception": ("int('x')", (End.RAISED, 1, "ValueError: invalid literal for int() with base 10: 'x'", None)),
    "exception without words": ("raise KeyboardInterrupt", (End.RAISED, 1, "KeyboardInterrupt", None)),
    "exception of a module": ("import json; json.loads('')",
                              (End.RAISED, 1, "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
                               None)),
    "exception that cannot be shown": ("class E(Exception):\n def __str__(self): raise E\nraise E",
                                       (End.RAISED, 1, "E", None)),
    "exception, and output that cannot be written": ("import os; print(1); os.close(1); 1 / 0",
                                                     (End.RAISED, 1, "ZeroDivisionError: division by zero", None)),
    "no Python": ("def f(:", (End.RAISED, 1, "SyntaxError: invalid syntax (program.py, line 1)", None)),
    "no end of input": ("input()", (End.RAISED, 1, "EOFError: EOF when reading a line", None)),
    "recursion": ("def f(): f()\nf()", (End.RAISED, 1, "RecursionError: maximum recursion depth exceeded", None)),
    "abort": ("import os; os.abort()", (End.SIGNALLED, signal.SIGABRT, None, None)),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", (End.SIGNALLED, signal.SIGSEGV, None, None)),
    "kills itself": ("import os; os.kill(os.getpid(), 9)", (End.SIGNALLED, signal.SIGKILL, None, None)),
    "terminates itself": ("import os; os.kill(os.getpid(), 15)", (End.SIGNALLED, signal.SIGTERM, None, None)),
    "alarm": ("import signal; signal.setitimer(signal.ITIMER_REAL, .05); signal.pause()",
              (End.SIGNALLED, signal.SIGALRM, None, None)),
    "processor time signal": ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)",
                              (End.LIMIT, None, None, "cpu")),
    "processor time": ("while True: pass", (End.LIMIT, None, None, "cpu")),
    "processor time in C": ("sum(range(10**12))", (End.LIMIT, None, None, "cpu")),
    "processor time of last words": ("class A:\n def __del__(self):\n  while True: pass\na = A()",
                                     (End.LIMIT, None, None, "cpu")),
    "wall-clock time": ("import time; time.sleep(60)", (End.LIMIT, None, None, "wall")),
    "stops itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", (End.LIMIT, None, None, "wall")),
    "memory at once": ("bytearray(10**9)", (End.LIMIT, None, "MemoryError", "memory")),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytes(10**7))", (End.LIMIT, None, "MemoryError", "memory")),
    "output": ("while True: print('x' * 99)", (End.LIMIT, None, None, "output")),
    "output at the end": ("print('x' * 9000)", (End.LIMIT, None, None, "output")),
    "output on stderr": ("import sys\nwhile True: sys.stderr.write('x' * 99)", (End.LIMIT, None, None, "output")),
    "one file": ("open('a', 'wb').write(bytes(2 << 20))",
                 (End.LIMIT, None, "OSError: [Errno 27] File too large", "disk")),
    "file size signal": ("import os, signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
                         "open('a', 'wb').write(bytes(2 << 20))", (End.LIMIT, None, None, "disk")),
    "caught": ("try: bytearray(10**9)\nexcept MemoryError: print('caught')", (End.EXITED, 0, None, None)),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_end_is_told_apart(sandbox: Sandbox, name: str) -> None:
    source, expected = ENDS[name]
    ran = run(sandbox, source, cpu_s=0.3, wall_s=1.0, memory_mb=100, output_kb=8, disk_mb=1)
    assert told(ran) == expected, ran


def test_many_files_meet_the_disk_limit(l1: Sandbox) -> None:
    ran = run(l1, "for n in range(99): open(str(n), 'wb').write(bytes(50_000))", disk_mb=1)
    assert told(ran) == (End.LIMIT, None, "OSError: [Errno 28] No space left on device", "disk")
    ran = run(l1, "for n in range(9999): open(str(n), 'wb')", disk_mb=1)  # empty ones, too
    assert (ran.ended, ran.limit) == (End.LIMIT, "disk") and "No space left on device" in str(ran.exception)


def test_what_was_written_before_the_end_is_there(sandbox: Sandbox) -> None:
    for source in ("import time; print('so far', flush=True); time.sleep(60)",
                   "print('so far', flush=True); import os; os.kill(os.getpid(), 9)"):
        assert run(sandbox, source, wall_s=0.5).stdout == b"so far\n"
    ran = run(sandbox, "import sys\nsys.stderr.write('note\\n')\nwhile True: print('x')", output_kb=2)
    assert ran.stdout == b"x\n" * 1024 and ran.stderr == b"note\n"


def test_times_are_measured(sandbox: Sandbox) -> None:
    asleep = run(sandbox, "import time; time.sleep(0.3)")
    assert 0.3 <= asleep.wall_s < 3 and asleep.cpu_s < 0.2
    busy = run(sandbox, "while True: pass", cpu_s=0.3)
    assert 0.29 <= busy.cpu_s < 0.5 and busy.cpu_s <= busy.wall_s + 0.05


LIKE_PYTHON = {
    "chained exceptions": "def f(x):\n    return 1 / x\ntry:\n    f(0)\nexcept ZeroDivisionError as e:\n"
                          "    raise ValueError('later\\nlines') from e",
    "syntax": "x = 1\nif x\n    pass",
    "atexit, threads and the last flush": "import atexit, threading, time\natexit.register(print, 'bye')\n"
                                          "def f():\n    time.sleep(.1)\n    print('thread')\n"
                                          "threading.Thread(target=f).start()\nprint('main')",
    "exit with words": "import sys\nprint('a')\nsys.exit('words')",
    "a hook of its own": "import sys\nsys.excepthook = lambda *e: print('hook', e[0].__name__)\nraise KeyError(1)",
    "a note": "e = ValueError('x')\ne.add_note('note')\nraise e",
    "streams": "import sys\nprint(sys.stdin.readline(), sys.stdin.buffer.read(), sys.stdin.isatty())"
               "\nprint(sys.stdout.encoding)\nprint('é', file=sys.stderr)\n"
               "print(sys.stdout.seekable(), sys.argv, __name__, sys.stdout.mode)",
    "a warning": "import warnings\nwarnings.warn('hm')",
    "an open file at the end": "f = open('a', 'w')\nf.write('x')\nprint('é' * 10)",
    "recursion": "def f(n):\n    return f(n + 1)\nf(0)",
    "depth": "def f(n):\n    try:\n        return f(n + 1)\n    except RecursionError:\n        return n\n"
             "import sys\nprint(f(1), sys.getrecursionlimit())\nsys.setrecursionlimit(300)\n"
             "print(f(1), sys.getrecursionlimit())\nsys.setrecursionlimit(2**31 - 1)\n"
             "for limit in (0, 'x', 2**31):\n    try:\n        sys.setrecursionlimit(limit)\n"
             "    except Exception as error:\n        print(error)",
    "depth in C": "class A:\n    depth = 0\n    def __eq__(self, other):\n        A.depth += 1\n"
                  "        return [self] == [other]\n"
                  "try:\n    A() == A()\nexcept RecursionError:\n    print(A.depth)",
    "output kept until the end": "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
                                 "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(6)",
    "a second writer": "import os\nf = os.fdopen(1, 'w')\nf.write('hi')",
    "a second writer that functions know": "f = open(1, 'w', closefd=False)\ndef g(): return f\nf.write('hi')",
    "a replaced stream": "import io, sys\nprint('first')\nsys.stdout = io.StringIO()\nprint('never seen')",
    "a wrapped stream": "import io, sys\nsys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, 'w')))\nprint(1)",
    "no stream": "import sys\nprint('seen')\ndel sys.stdout",
    "a generator's last words": "def f():\n    try:\n        yield\n    finally:\n        print('bye', x)\n"
                                "x = 3\ng = f()\nnext(g)",
    "objects' last words": "class A:\n    def __init__(self, n): self.n = n\n    def __del__(self): print(self.n)\n"
                           "a, b = A(1), A(2)\nb.b, c = b, A(3)\nc.c = c\ndel c",
    "last words after an exit": "class A:\n    def __del__(self): print('bye')\na = A()\nraise SystemExit(3)",
    "last words after an exception": "class A:\n    def __del__(self): print('bye')\na = A()\n1 / 0",
    "output that cannot be written": "import os\nprint('x')\nos.close(1)\nraise SystemExit(3)",
    "newlines": "import sys\nprint(ascii(input()), ascii(sys.stdin.read()), sys.stdin.newlines)",
    "a group": "raise ExceptionGroup('many', [ValueError(1), TypeError(2)])",
}


@pytest.mark.parametrize("name", LIKE_PYTHON)
def test_a_program_ends_as_under_python_itself(sandbox: Sandbox, name: str, tmp_path: Path) -> None:
    source = LIKE_PYTHON[name]
    (tmp_path / "program.py").write_text(source)
    stdin = "line\r\nrest é\n\r"
    peer = subprocess.run([sys.executable, "-X", "utf8", "program.py"], cwd=tmp_path, input=stdin.encode(),
                          capture_output=True, env={**os.environ, "PYTHONUNBUFFERED": ""})
    ran = run(sandbox, source, stdin=stdin)
    assert ran.stdout == peer.stdout
    if name != "output that cannot be written":  # Python says so, too
        assert ran.stderr.decode() == peer.stderr.decode().replace(f"{tmp_path}/", "")
    assert (ran.code if ran.ended is End.EXITED else 1) == peer.returncode


def test_a_program_finds_an_ordinary_interpreter(sandbox: Sandbox) -> None:
    source = """
import os, sys, gc, part, signal, pickle
class C: pass
assert isinstance(pickle.loads(pickle.dumps(C())), C)
assert open("data.bin", "rb").read() == b"\\x00\\xff" and part.x == 1
assert sorted(os.listdir()) == ["data.bin", "part.py"] and os.getcwd() == sys.path[0]
assert gc.isenabled() and sys.argv == ["program.py"] and __name__ == "__main__"
assert all(name.endswith("_NUM_THREADS") for name in os.environ), os.environ
assert not [name for name in sys.modules if name.startswith("fathom")]
assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL and signal.getsignal(signal.SIGINT) is not None
open("own", "w").write("x"); os.mkdir("sub"); os.remove("own")
import tempfile; tempfile.TemporaryFile().write(b"x")
for descriptor in range(4096):
    try: os.fstat(descriptor)
    except OSError: continue
    print(descriptor)
"""
    ran = run(sandbox, source, files={"data.bin": b"\x00\xff", "part.py": b"x = 1"})
    assert told(ran) == (End.EXITED, 0, None, None), ran.stderr.decode()
    assert ran.stdout == b"0\n1\n2\n63\n"  # 63 takes the report of its exception


def test_threads_are_allowed_up_to_their_number(l1: Sandbox) -> None:
    ran = run(l1, """
import sys, threading
sys.setrecursionlimit(10**6); threading.stack_size(256 << 20)
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
def main(): print(deep(100_000))
thread = threading.Thread(target=main); thread.start(); thread.join()
threading.stack_size(1 << 20)
go, started = threading.Event(), 0
try:
    for _ in range(99):
        threading.Thread(target=go.wait).start()
        started += 1
except RuntimeError: print(started)
go.set()
""", threads=8, memory_mb=1024)
    assert (ran.stdout, told(ran)) == (b"100000\n8\n", (End.EXITED, 0, None, None)), ran


def test_asyncio_works(sandbox: Sandbox) -> None:
    source = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    print('slept')\nasyncio.run(f())"
    assert run(sandbox, source).stdout == b"slept\n"


NUMBERS = "import numpy, sympy\nprint(int(numpy.linalg.inv(numpy.eye(9) / 2).sum()), sympy.factor('x**2 - 1'))\n"


def test_numpy_and_sympy_work_with_and_without_preload(l1: Sandbox) -> None:
    plain = run(l1, NUMBERS)
    with opened(Level.L1, preload=("numpy", "sympy")) as loaded:
        fast, *seeds = loaded.run([Program(NUMBERS), *[Program("import numpy; print(numpy.random.rand())")] * 3])
    assert plain.stdout == fast.stdout == b"18 (x - 1)*(x + 1)\n", plain.stderr
    assert fast.cpu_s < plain.cpu_s / 2
    assert len({ran.stdout for ran in seeds}) == 3


def test_random_numbers_differ_from_program_to_program() -> None:
    with opened(Level.L1, preload=("random",)) as sandbox:
        ran = sandbox.run([Program("import random; print(random.random())")] * 4)
    assert len({r.stdout for r in ran}) == 4 and all(r.code == 0 for r in ran)


def test_strings_hash_alike_in_one_server_and_not_in_the_next(sandbox: Sandbox) -> None:
    with opened(sandbox.level) as other:
        here, there = (s.run([Program("print(hash('a'), hash('b'))")] * 3) for s in (sandbox, other))
    assert len({ran.stdout for ran in here}) == len({ran.stdout for ran in there}) == 1
    assert here[0].stdout != there[0].stdout


def test_standard_streams_are_reached_by_number(l1: Sandbox) -> None:
    ran = run(l1, "import sys\nprint(open(0).read(), file=open(1, 'w'))\nprint(1, file=open(2, 'w'))", stdin="a\nb")
    assert (ran.stdout, ran.stderr, ran.code) == (b"a\nb\n", b"1\n", 0)
    for name in ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/0", "/proc/self/fd/0"):
        ran = run(l1, f"open({name!r})", stdin="a")
        assert ran.exception == f"FileNotFoundError: [Errno 2] No such file or directory: {name!r}"


def test_200_programs_come_back_in_order(sandbox: Sandbox) -> None:
    delays = [random.Random(7).random() / 50 for _ in range(200)]
    programs = [Program(f"import time; time.sleep({delay}); print(input())", stdin=str(n))
                for n, delay in enumerate(delays)]
    assert [ran.stdout for ran in sandbox.run(programs)] == [f"{n}\n".encode() for n in range(200)]
    assert sandbox.run([]) == []


def test_several_threads_share_a_sandbox(sandbox: Sandbox) -> None:
    found: dict[int, list[bytes]] = {}

    def ask(number: int) -> None:
        found[number] = [ran.stdout for ran in sandbox.run([Program(f"print({number}, input())", stdin="x")] * 5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [f"{number} x\n".encode()] * 5 for number in range(4)}


def test_large_inputs_outputs_and_odd_bytes(sandbox: Sandbox) -> None:
    data = random.Random(1).randbytes(3 << 20)
    ran = run(sandbox, "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d[::-1])", stdin=data,
              output_kb=4096)
    assert ran.stdout == data[::-1] and ran.ended is End.EXITED
    odd = run(sandbox, "\ufeffprint('é\\ud800'.encode(errors='surrogatepass'))")
    assert odd.stdout == b"b'\\xc3\\xa9\\xed\\xa0\\x80'\n"
    assert run(sandbox, "x = 1\0").ended is End.RAISED


def test_pairs_talk_over_descriptor_3(sandbox: Sandbox) -> None:
    first = Program("""
import socket
with socket.socket(fileno=3) as s, s.makefile("rw") as f:
    for line in f:
        print(int(line) + 1, file=f, flush=True)
        print("saw", line.strip(), flush=True)
""")
    leader = Program("""
import os
f = os.fdopen(3, "r+b", buffering=0)
f.write(b"1\\n"); a = f.read(10); f.write(b"41\\n"); b = f.read(10)
print(a, b); raise SystemExit(7)
""")
    ((one, two),) = sandbox.run_pairs([(first, leader)])
    assert told(two) == (End.EXITED, 7, None, None) and two.stdout == b"b'2\\n' b'42\\n'\n"
    assert told(one) == (End.EXITED, 0, None, None) and one.stdout == b"saw 1\nsaw 41\n"


def test_the_leader_of_a_pair_ends_the_other(sandbox: Sandbox) -> None:
    busy = "while True: pass"
    reads = "import os; os.read(3, 9); print('went on'); raise SystemExit(5)"  # it never sees the leader's end close
    for source in (busy, reads):
        before = time.monotonic()
        ((one, two),) = sandbox.run_pairs([(Program(source), Program("print('done')"))])
        assert time.monotonic() - before < 3
        assert told(one) == told(two) == (End.EXITED, 0, None, None) and one.stdout == b""
    failed = Program("raise ValueError('x')")
    ends = [(failed, Program("import os; print(os.read(3, 9))")), (Program("while True: pass"), failed),
            (Program("while True: pass", limits=Limits(cpu_s=0.2)), Program("import os; print(os.read(3, 9))"))]
    (a, b), (c, d), (e, f) = sandbox.run_pairs(ends)
    assert told(a) == (End.RAISED, 1, "ValueError: x", None) and b.stdout == b"b''\n"
    assert told(c) == (End.EXITED, 0, None, None) and told(d) == told(a)
    assert told(e) == (End.LIMIT, None, None, "cpu") and f.stdout == b"b''\n"


def test_a_program_that_ends_with_its_leader_ended_by_itself(sandbox: Sandbox) -> None:
    """The order to kill it comes while the kernel takes it apart: its end is still told as it was."""
    failed = Program("raise ValueError('x')")
    waits = Program("import os; os.read(3, 9)")
    for ran in sandbox.run_pairs([(failed, waits)] * 200):
        assert [told(one) for one in ran] == [(End.RAISED, 1, "ValueError: x", None), (End.EXITED, 0, None, None)]


SEARCH = """
import gc, sys
needle = {backwards!r}[::-1]
{given}
def everything():
    gc.unfreeze()
    seen, todo = set(), [*gc.get_objects(), sys.modules, sys._getframe()]
    while todo:
        thing = todo.pop()
        if id(thing) not in seen and thing is not needle:
            seen.add(id(thing))
            yield thing
            todo += gc.get_referents(thing)
found = [type(thing) for thing in everything() if isinstance(thing, str) and needle in thing
         or isinstance(thing, (bytes, bytearray)) and needle.encode() in thing]
def pages():  # all memory around every object, by a system call that says no instead of crashing
    import ctypes, os
    write = ctypes.CDLL(None).write
    a, b = os.pipe()
    regions = {{id(thing) >> 20 for thing in gc.get_objects()}}
    for region in sorted({{near for region in regions for near in (region - 1, region, region + 1)}}):
        text = b""
        for page in range(region << 20, (region + 1) << 20, 4096):
            if write(b, ctypes.c_void_p(page), 4096) == 4096:
                text += os.read(a, 4096)
        yield text
raw = sum(text.count(needle.encode()) for text in pages())
print(len(found), raw)
"""


def test_no_program_finds_another_ones_source_input_or_output_in_its_memory(sandbox: Sandbox) -> None:
    secret = "Kartoffelpuffer-7391"
    search = SEARCH.format(backwards=secret[::-1], given="")
    tellers = [Program(f"print({secret!r}, input())", stdin=secret, files={"f": secret.encode()}),
               Program(f"raise ValueError({secret!r})"),
               Program(f"print({secret!r}, flush=True); import time; time.sleep(1)", stdin=secret,
                       files={"f": secret.encode()})]
    limits = Limits(cpu_s=60, wall_s=60)
    *told_it, found = sandbox.run([*tellers, Program(search, limits=limits)])  # the last two run at the same time
    assert all(secret.encode() in ran.stdout + ran.stderr for ran in told_it)
    assert found.stdout == b"0 1\n", found  # its own needle alone
    control = run(sandbox, SEARCH.format(backwards=secret[::-1], given="kept = [input()]"), stdin=secret, cpu_s=60,
                  wall_s=60)
    objects, raw = map(int, control.stdout.split())
    assert objects >= 1 and raw >= 2, "the search would not have found it"


def test_the_server_never_holds_what_programs_are_given(sandbox: Sandbox) -> None:
    secret = f"Reibekuchen-{random.Random(3).random()}"
    sandbox.run([Program(f"print({secret!r}, input())", stdin=secret, files={"f": secret.encode()})] * 3)
    (server,) = sandbox.pids()
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("only root may read the server's memory")

    def held(pid: int, needle: bytes) -> bool:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if "rw" in line.split()[1]:
                    memory.seek(start)
                    if needle in memory.read(end - start):
                        return True
        return False

    assert held(server, b"program.py") and held(os.getpid(), secret.encode())  # the search works
    assert not held(server, secret.encode())


def test_a_busy_machine_is_not_a_wrong_program() -> None:
    assert out_of_time(wall_s=10, cpu_s=1, waited_s=8) is Seen.STARVED
    assert out_of_time(wall_s=10, cpu_s=1, waited_s=4) is Seen.WALL  # slept, or waited for input
    assert out_of_time(wall_s=10, cpu_s=9, waited_s=8) is Seen.WALL  # its own threads took the processor from it


@LINUX
@pytest.mark.long
def test_a_starved_program_is_broken_and_a_sleeping_one_is_not() -> None:
    with opened(Level.L1) as sandbox:
        (server,) = sandbox.pids()
        core = min(os.sched_getaffinity(0))
        busy = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
        # In sessions of their own: Linux may share a processor out by session first.
        rivals = [subprocess.Popen([sys.executable, "-c", busy], start_new_session=True) for _ in range(6)]
        try:
            os.sched_setaffinity(server, [core])
            os.setpriority(os.PRIO_PROCESS, server, 19)  # programs inherit both
            (starved,) = sandbox.run([Program("while True: pass", limits=Limits(cpu_s=3, wall_s=3))])
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
        assert (starved.ended, starved.reason) == (End.BROKEN, "starved of processor"), starved
        assert run(sandbox, "import time; time.sleep(9)", wall_s=0.5).limit == "wall"


@pytest.mark.parametrize(("limits", "words"), [
    ({"cpu_s": 0}, "cpu_s=0: must be above 0"), ({"wall_s": float("nan")}, "wall_s=nan"),
    ({"memory_mb": 0}, "memory_mb=0: must be a whole number"), ({"output_kb": -1}, "output_kb=-1"),
    ({"disk_mb": 1.5}, "disk_mb=1.5"), ({"threads": True}, "threads=True"),
])
def test_impossible_limits(sandbox: Sandbox, limits: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(sandbox, "", **limits)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "x" * 256])
def test_files_have_plain_names(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(UsageError, match="no plain file name"):
        run(sandbox, "", files={name: b""})


def test_impossible_settings(sandbox: Sandbox) -> None:
    with pytest.raises(UsageError, match="raise disk_mb"):
        run(sandbox, "", files={"a": bytes(2 << 20)}, disk_mb=1)
    with pytest.raises(UsageError, match="workers=0"):
        Sandbox(workers=0)
    with pytest.raises(UsageError, match="no_such_module: ModuleNotFoundError"):
        Sandbox(preload=("no_such_module",))
    with pytest.raises(UsageError, match="not the name of a module"):
        Sandbox(preload=("os; evil",))
    with pytest.raises(UsageError, match="a list of module names"):
        Sandbox(preload="numpy")
    with pytest.raises(UsageError, match="less than require_level=L1"):
        Sandbox(level=Level.L0, require_level=Level.L1)


def test_a_closed_sandbox_starts_anew(sandbox: Sandbox) -> None:
    sandbox.close()
    assert sandbox.pids() == []
    assert run(sandbox, "print(1)").stdout == b"1\n"


def test_every_guarantee_on_the_page_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "sandbox.md").read_text()
    named = re.findall(r"`(tests/judge/\w+\.py)::(\w+)`", page)
    assert len(named) >= 15
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"
