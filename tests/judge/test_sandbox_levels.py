"""Which level is reached, for whom, and what is said where it is not; the list of system calls."""

import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandboxes import ROOT, children, run, until

from fathom.judge.sandbox import End, Level, Ran, Sandbox, confine, reached_level, seccomp

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def unprivileged_python() -> str:
    """An interpreter that user 65534 can run."""
    candidates = [os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"]
    for path in filter(os.path.exists, candidates):
        code = ("import os, sys, fathom.core.errors\n"
                "sys.exit(sys.version_info < (3, 11) or not os.access(sys.executable, os.X_OK))")
        tried = subprocess.run([*NOBODY, path, "-c", code], cwd=ROOT, capture_output=True)
        if tried.returncode == 0:
            return path
    pytest.skip("no Python ≥ 3.11 that user 65534 can run")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user")
def test_an_unprivileged_user_reaches_l1_too(l1: Sandbox) -> None:
    code = """
import os
from fathom.judge.sandbox import *
print(os.getuid(), reached_level())
with Sandbox(require_level=Level.L1) as s:
    tries = "import os; print(os.getuid(), os.listdir('/'))\\ntry: os.fork()\\nexcept OSError as e: print(e)"
    for r in s.run([Program(tries), Program("1/0"), Program("while True: pass", limits=Limits(cpu_s=.2))]):
        print(r.ended, r.limit, r.stdout)
"""
    done = subprocess.run([*NOBODY, unprivileged_python(), "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    lines = done.stdout.splitlines()
    assert lines and lines[0] == "65534 (<Level.L1: 1>, '')", done.stdout + done.stderr
    assert lines[1].startswith("exited None b") and "1000 [" in lines[1] and "Operation not permitted" in lines[1]
    assert "home" not in lines[1] and "proc" not in lines[1]
    assert lines[2:] == ["raised None b''", "limit cpu b''"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may look")
def test_programs_run_as_nobody_outside(l1: Sandbox) -> None:
    thread = threading.Thread(target=run, args=(l1, "import time; time.sleep(0.7)"))
    thread.start()
    (server,) = l1.pids()
    assert until(lambda: bool(children(server)) and bool(children(children(server)[0])))
    (first,) = children(server)
    (program,) = children(first)
    none = "0000000000000000"
    wanted = {"Uid:": "65534", "CapInh:": none, "CapPrm:": none, "CapEff:": none, "CapAmb:": none, "NoNewPrivs:": "1",
              "Seccomp:": "2"}

    def held() -> dict[str, str]:
        rows = [line.split() for line in Path(f"/proc/{program}/status").read_text().splitlines()]
        return {row[0]: row[1] for row in rows if row and row[0] in wanted}

    assert until(lambda: held() == wanted, 0.5), held()
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{program}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    thread.join()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes a kernel that refuses")
def test_where_namespaces_are_refused_the_reason_and_the_remedy_are_told() -> None:
    code = """
from fathom.judge.sandbox import *
print(reached_level())
with Sandbox() as s: print(s.level.name, s.run([Program("print(1)")])[0].stdout)
for asked in ({"require_level": Level.L1}, {"level": Level.L1}):
    try: Sandbox(**asked)
    except SandboxError as error: print(error)
"""
    refusing = ["unshare", "--user", "--map-root-user", "sh", "-c",
                'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(refusing, cwd=ROOT, capture_output=True, text=True, timeout=60)
    reached, fallen, *errors = done.stdout.splitlines()
    assert reached.startswith("(<Level.L0: 0>, ") and "sysctl user.max_user_namespaces=10000" in reached, done.stderr
    assert fallen == "L0 b'1\\n'"
    assert len(errors) == 2 and all("max_user_namespaces" in line and "L1" in line for line in errors)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes a kernel that refuses")
def test_a_program_that_cannot_be_started_is_broken_and_no_more_than_that(l1: Sandbox) -> None:
    code = """
from pathlib import Path
from fathom.judge.sandbox import *
with Sandbox(require_level=Level.L1) as s:
    program = Program("print(1)")
    print(s.run([program])[0].stdout)
    most = Path("/proc/sys/user/max_net_namespaces")
    before = most.read_text()
    most.write_text("0")
    print(*s.run([program] * 2), sep="\\n")
    most.write_text(before)
    print(s.run([program])[0].stdout)
"""
    done = subprocess.run(["unshare", "--user", "--map-root-user", sys.executable, "-c", code], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    broken = str(Ran(End.BROKEN, reason="no process for the program: clone: No space left on device"))
    assert done.stdout.splitlines() == ["b'1\\n'", broken, broken, "b'1\\n'"], done.stdout + done.stderr


def test_other_platforms_give_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    with pytest.raises(confine.Refused, match=r"no list of system calls for .*; use x86_64 or aarch64"):
        confine.build_root([])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(confine.Refused, match="this is darwin"):
        confine.build_root([])


def test_this_machine_reaches_the_level_that_it_says() -> None:
    level, why = reached_level()
    with Sandbox() as sandbox:
        assert sandbox.level is level
    assert (why == "") == (level is Level.L1)
    with Sandbox(level=Level.L0) as sandbox:
        assert sandbox.level is Level.L0


def answer(filter: list[seccomp.Instruction], architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would return: its bytecode, interpreted."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    register = at = 0
    while True:
        code, true, false, constant = filter[at]
        at += 1
        if code == 0x20:
            (register,) = struct.unpack_from("<I", data, constant)
        elif code == 0x54:
            register &= constant
        elif code == 0x05:
            at += constant
        elif code == 0x15:
            at += true if register == constant else false
        elif code == 0x35:
            at += true if register >= constant else false
        else:
            assert code == 0x06
            return constant


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000


@pytest.mark.parametrize(("machine", "architecture", "shift"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)])
def test_the_list_of_system_calls_is_what_it_says(machine: str, architecture: int, shift: int) -> None:
    filter = seccomp.program(machine, 2)
    number = seccomp.numbers(machine)
    assert len(number) == len(set(number.values())) > 100
    looked_at = {"clone", "clone3", "openat2", "kill", "tgkill", "fcntl", "ioctl", "prctl", "prlimit64", "socketpair",
                 "madvise", "sendto", "recvfrom"}
    plain = {n for name, n in number.items() if name not in looked_at}
    for n in range(600):
        if n in plain:
            assert answer(filter, architecture, n) == ALLOW
        elif n not in number.values():
            assert answer(filter, architecture, n) == (EPERM if n < 463 else ENOSYS), n
    # pidfd_send_signal, io_uring_setup, move_mount, pidfd_open, process_madvise, memfd_secret: the same number on both
    assert all(answer(filter, architecture, n) == EPERM for n in (424, 425, 429, 434, 440, 447))
    named = {"execve": (59, 221), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117), "socket": (41, 198),
             "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "keyctl": (250, 219),
             "memfd_create": (319, 279), "personality": (135, 92), "userfaultfd": (323, 282), "chroot": (161, 51),
             "sendmsg": (46, 211), "shmget": (29, 194), "mknodat": (259, 33), "process_vm_readv": (310, 270)}
    for name, numbers in named.items():
        assert numbers[shift] is None or answer(filter, architecture, numbers[shift]) == EPERM, name

    thread = 0x3D0F00  # what pthread_create asks for
    for name, arguments, expected in [
        ("clone", (thread,), ALLOW), ("clone", (17,), EPERM), ("clone", (0x4111,), EPERM), ("clone3", (), ENOSYS),
        ("clone", (thread | 0x10000000,), EPERM), ("clone", (thread | 0x20000,), EPERM), ("openat2", (), ENOSYS),
        ("kill", (2, 9), ALLOW), ("kill", (1, 9), EPERM), ("kill", (2**32 - 1, 9), EPERM), ("kill", (0, 9), EPERM),
        ("tgkill", (2, 3, 6), ALLOW), ("tgkill", (1, 1, 6), EPERM),
        ("ioctl", (0, 0x5401), ALLOW), ("ioctl", (0, 0x5412), EPERM), ("ioctl", (0, 0x541C), EPERM),
        ("fcntl", (0, 4), ALLOW), ("fcntl", (0, 8), EPERM), ("fcntl", (0, 1031), EPERM),
        ("prctl", (15,), ALLOW), ("prctl", (4,), EPERM), ("prctl", (22,), EPERM),
        ("prlimit64", (0,), ALLOW), ("prlimit64", (1,), EPERM),
        ("socketpair", (1,), ALLOW), ("socketpair", (16,), EPERM),
        ("madvise", (0, 0, 4), ALLOW), ("madvise", (0, 0, 12), EPERM), ("fcntl", (0, 6), EPERM),
        ("sendto", (3, 0, 1, 0x4000), ALLOW), ("sendto", (3, 0, 1, 1), EPERM), ("recvfrom", (3, 0, 1, 1), EPERM),
    ]:
        assert answer(filter, architecture, number[name], *arguments) == expected, (name, arguments)
    assert answer(filter, 0x40000003, 0) == KILL  # 32-bit calls have other numbers
    assert answer(filter, architecture, 0x40000000) == KILL  # and so have those of x32


@pytest.mark.skipif(not Path("/usr/include/asm-generic/unistd.h").exists(), reason="no kernel headers")
def test_system_calls_have_the_numbers_of_the_kernels_headers() -> None:
    generic = Path("/usr/include/asm-generic/unistd.h").read_text()
    wide = dict(re.findall(r"#define __NR_(\w+) __NR3264_(\w+)", generic))
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", generic))
    known = {name: int(numbers[name]) for name in seccomp.numbers("aarch64") if name in numbers}
    assert len(known) > 90 and known.items() <= seccomp.numbers("aarch64").items()
    assert int(numbers[wide["newfstatat"]]) == seccomp.numbers("aarch64")["newfstatat"]
    headers = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if headers.exists():
        numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", headers.read_text()))
        known = {name: int(numbers[name]) for name in seccomp.numbers("x86_64") if name in numbers}
        assert len(known) > 120 and known.items() <= seccomp.numbers("x86_64").items()
