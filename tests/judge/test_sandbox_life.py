"""What becomes of processes, files and answers when programs, the sandbox's server or its caller are killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandboxes import LINUX, ROOT, alive, children, opened, run, told, until

from fathom.judge.sandbox import End, Level, Limits, Program, Ran, Sandbox, parent

VIOLENT = ["", "1 / 0", "import os; os.abort()", "import os; os.kill(os.getpid(), 9)", "while True: pass",
           "import time; time.sleep(60)", "while True: print('x' * 99)", "open('a', 'wb').write(bytes(99 << 20))",
           "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(60,)).start()"]


@LINUX
def test_nothing_is_left_of_programs_and_of_a_closed_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mounts, descriptors = Path("/proc/self/mountinfo").read_text(), len(os.listdir("/proc/self/fd"))
    for level in (Level.L0, Level.L1):
        with opened(level) as sandbox:
            (server,) = sandbox.pids()
            sandbox.run([Program("")])
            held = len(os.listdir(f"/proc/{server}/fd"))
            sandbox.run([Program(source, limits=Limits(cpu_s=0.2, wall_s=0.5)) for source in VIOLENT])
            assert children(server) == [] and len(os.listdir(f"/proc/{server}/fd")) == held
            assert [list(folder.iterdir()) for folder in tmp_path.iterdir()] == ([[]] if level is Level.L0 else [])
        assert not alive(server) and list(tmp_path.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert len(os.listdir("/proc/self/fd")) == descriptors


@LINUX
def test_what_a_program_leaves_running_at_l0_is_found_and_ended() -> None:
    with opened(Level.L0) as sandbox:
        ran = run(sandbox, """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 99)
            time.sleep(600)
        time.sleep(600)
os.mkdir("locked"); open("locked/file", "w"); os.chmod("locked", 0)
""")
        assert told(ran) == (End.EXITED, 0, None, None), ran
        (server,) = sandbox.pids()
        assert children(server) == []
        sessions = [path for path in Path("/proc").glob("[0-9]*/stat") if "program" in path.read_text()]
        assert sessions == [] and list(Path(sandbox._servers[0].folder).iterdir()) == []


@LINUX
def test_a_killed_server_costs_nobody_an_answer(sandbox: Sandbox) -> None:
    programs = [Program("import time; time.sleep(0.4); print(input())", stdin=str(n)) for n in range(4)]
    sandbox.run(programs[:1])
    (first,) = sandbox.pids()
    inside = children(first)
    threading.Timer(0.2, os.kill, (first, 9)).start()
    assert [ran.stdout for ran in sandbox.run(programs)] == [b"0\n", b"1\n", b"2\n", b"3\n"]
    assert sandbox.pids() != [first] and not any(map(alive, inside))
    os.kill(sandbox.pids()[0], 9)  # between two runs, too
    assert sandbox.run(programs[:1])[0].stdout == b"0\n"


@LINUX
def test_programs_whose_server_is_killed_twice_are_broken(sandbox: Sandbox) -> None:
    done = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not done.wait(0.02):
            for pid in sandbox.pids():
                if children(pid) and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, 9)

    killer = threading.Thread(target=kill)
    killer.start()
    ran = sandbox.run([Program("import time; time.sleep(5)")])
    done.set()
    killer.join()
    assert len(killed) == 2
    assert ran == [Ran(End.BROKEN, reason="the sandbox's server died twice")]
    assert run(sandbox, "print(1)").stdout == b"1\n"


@LINUX
def test_a_stopped_server_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "_GRACE_S", 0.5)
    with opened(Level.L1) as sandbox:
        (first,) = sandbox.pids()
        os.kill(first, signal.SIGSTOP)
        assert run(sandbox, "print(1)", wall_s=0.5).stdout == b"1\n"
        assert not alive(first)


@LINUX
@pytest.mark.parametrize("level", [Level.L0, Level.L1], ids=["L0", "L1"])
def test_a_killed_parent_takes_server_and_programs_along(level: Level, tmp_path: Path) -> None:
    opened(level).close()  # skips, or fails, where the level is not there
    script = f"""
import tempfile; tempfile.tempdir = {str(tmp_path)!r}
from fathom.judge.sandbox import *
with Sandbox(level=Level({int(level)})) as s:
    print(*s.pids(), flush=True)
    s.run([Program("import time; time.sleep(600)", limits=Limits(wall_s=600))] * 2)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    assert until(lambda: len(children(server)) == 2)
    everything = [server, *children(server), *(grandchild for pid in children(server) for grandchild in children(pid))]
    assert all(map(alive, everything))
    process.kill()
    process.wait()
    process.stdout.close()
    assert until(lambda: not any(map(alive, everything)))
    assert until(lambda: list(tmp_path.iterdir()) == [])


@LINUX
def test_a_killed_server_takes_programs_along() -> None:
    with opened(Level.L1) as sandbox:
        thread = threading.Thread(target=sandbox.run, args=([Program("import time; time.sleep(1)")],))
        thread.start()
        (server,) = sandbox.pids()
        assert until(lambda: bool(children(server)) and bool(children(children(server)[0])))
        (first,) = children(server)
        (program,) = children(first)
        os.kill(server, 9)
        assert until(lambda: not alive(first) and not alive(program))
        thread.join()


def test_a_forked_child_of_the_parent_leaves_the_sandbox_alone(l1: Sandbox) -> None:
    code = """
import os
from fathom.judge.sandbox import *
s = Sandbox()
if os.fork() == 0:
    try: s.run([Program("")])
    except SandboxError as error: print("open another one" in str(error), flush=True)
    s.close()
    raise SystemExit
os.wait()
print(s.run([Program("print(1)")])[0].stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, timeout=60)
    assert done.stdout == "True\nb'1\\n'\n", done.stderr
