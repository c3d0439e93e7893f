"""What holds a program: namespaces, a root of its own, no privileges, limits. Linux; each function acts on its caller.

`build_root` runs once, in the server. For each program `fresh` clones a process into namespaces of its own, `divide`
makes of it one that waits and one that becomes the program, `settle` gives that its user and folder, and `seal` takes
the last rights away just before the program's first line. A copy pays for each page that it writes to, an object's
count of references included: what runs for each program is prepared, and short.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys
from contextlib import suppress

from fathom.judge.sandbox import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:  # as typing's, without importing it
    from collections.abc import Sequence

FOLDER = "/sandbox"  # where a program works, inside its own root
_FOLDER = FOLDER.encode()
NOBODY = 65534
_INSIDE = 1000  # a program's user and group, as it sees them
_INODES = 2048
_OPEN_FILES = 64
_STACK = 64 << 20

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_ALL_NEW = _NEWNS | _NEWUSER | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # cgroup uts ipc pid net
_SIGCHLD = 17
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442
_CLONE = {"x86_64": 56, "aarch64": 220}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP = 1, 4, 22
_SET_SECUREBITS, _SUBREAPER, _NO_NEW_PRIVS = 28, 36, 38
_FILTER = 2
_ALL_SECUREBITS = 0xEF  # noroot, no setuid fixup, no ambient raise, each with its lock; keep_caps locked off

_DEVICES = ("null", "zero", "full", "random", "urandom")
_SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo",
           "/etc/ld.so.cache", "/etc/localtime")
_SWITCHES = (  # what forbids user namespaces, and the value that does
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
     "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
)


class Refused(Exception):
    """The platform does not give L1; says what is missing and the remedy."""


# PyDLL: the interpreter's lock stays held, so that a cloned process finds it as it was.
_libc = ctypes.PyDLL(None, use_errno=True)
if sys.platform == "linux":  # named here, so that they are looked up once and not in every copy
    _libc.syscall.restype = ctypes.c_long
    _libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    _libc.mount.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
    _libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    _libc.capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)


class _Account(ctypes.Structure):
    """How a program ended and what it used, as wait4(2) gives it (a struct rusage is 18 longs)."""

    _fields_ = (("mark", ctypes.c_char * 4), ("status", ctypes.c_int), ("usage", ctypes.c_long * 18))


_MARK, _ACCOUNT = b"\nend", struct.Struct("=i4q")
_plain = ctypes.PyDLL(None)  # whose calls keep no errno
if sys.platform == "linux":
    _account = _Account(_MARK)
    _ended = (ctypes.byref(_account, 4), 0, ctypes.byref(_account, 8))
    _told = (ctypes.byref(_account), ctypes.sizeof(_account))
    _copy = tuple(map(ctypes.c_long, (_CLONE.get(os.uname().machine, 0), _SIGCHLD, 0, 0, 0, 0)))
    _fresh_copy = (_copy[0], ctypes.c_long(_ALL_NEW | _SIGCHLD), *_copy[2:])
    _fork, _control, _signal, _write, _wait = _plain.syscall, _plain.prctl, _plain.signal, _plain.write, _plain.wait4
    _before_fork, _after_fork = ctypes.pythonapi.PyOS_BeforeFork, ctypes.pythonapi.PyOS_AfterFork_Child
    _before_fork.restype = _after_fork.restype = None
_CAPABILITIES_HEADER, _NO_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3


class _SetAttr(ctypes.Structure):
    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64),
                ("userns", ctypes.c_uint64))


class Filter(ctypes.Structure):
    """The system calls that a program may make, as the kernel takes them."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def system_calls(pid: int) -> Filter:
    """For a program whose own process has this number."""
    instructions = seccomp.program(os.uname().machine, pid)
    return Filter(len(instructions), seccomp.assembled(instructions))


def _check(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int, more: int = 0) -> None:
    if _libc.prctl(option, value, more, 0, 0):
        _check(-1, f"prctl {option}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode()),
           f"mount {target}")


def _read_only(target: str, attributes: int, recursive: bool = True) -> None:
    wanted = _SetAttr(attributes, 0, 0, 0)
    _check(_libc.syscall(ctypes.c_long(_MOUNT_SETATTR), ctypes.c_long(_AT_FDCWD), ctypes.c_char_p(os.fsencode(target)),
                         ctypes.c_long(_AT_RECURSIVE if recursive else 0), ctypes.byref(wanted),
                         ctypes.c_long(ctypes.sizeof(wanted))), f"mount_setattr {target}")


def adopt_orphans() -> None:
    """Processes whose parent ends become the caller's children, wherever they moved."""
    _prctl(_SUBREAPER, 1)


def die_with_parent() -> None:
    """The caller is killed when the process that started it ends."""
    _prctl(_PDEATHSIG, 9)


def unseen() -> None:
    """Other processes of the same user may not read the caller's memory, and no file it runs gives it rights."""
    _prctl(_SET_DUMPABLE, 0)
    _prctl(_NO_NEW_PRIVS, 1)


def build_root(packages: Sequence[str]) -> list[str]:
    """Moves the caller into a root that shows Python, `packages` and the system's libraries, and lays down its rights.

    Refused where the platform does not allow that. Returns what could be the remedies should it refuse more later on.
    """
    if sys.platform != "linux" or sys.byteorder != "little":
        raise Refused(f"namespaces are a part of Linux, this is {sys.platform}; run it in a Linux virtual machine")
    if not seccomp.supported():
        raise Refused(f"no list of system calls for {os.uname().machine}; use x86_64 or aarch64")
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])
    if release < (5, 14):
        raise Refused(f"Linux {os.uname().release} is too old; use 5.14 or newer")
    hints = _hints()
    shown = _shown(packages)
    try:
        as_root = os.geteuid() == 0 and _own_mounts()
        if not as_root:
            user, group = os.geteuid(), os.getegid()
            _unshare(_NEWUSER | _NEWNS)
            proc = os.open("/proc", os.O_PATH)
            _map(maps_of(user, user, group, group), proc)
            os.close(proc)
        _mount("", "/", "", _REC | _PRIVATE)
        _pivot(shown)
        if as_root:
            _become_nobody()
    except OSError as error:
        raise Refused(_advice(error, hints)) from None
    closed = [path for path in packages if not os.access(path, os.R_OK | os.X_OK)]
    if closed:
        raise Refused(f"{closed[0]}: not readable by user {os.geteuid()}; chmod -R o+rX {closed[0]}")
    return hints


def rehearse(proc: int, maps: Sequence[tuple[str, bytes]], allowed: Filter, hints: list[str]) -> None:
    """Confines a process that does nothing else. Refused where that fails."""
    ours, theirs = os.pipe()
    try:
        pid = fresh()
    except OSError as error:
        raise Refused(_advice(error, hints)) from None
    if not pid:
        try:
            settle(proc, maps, 1)
            seal(allowed)
        except OSError as error:
            os.write(theirs, str(error).encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    said = os.read(ours, 1000).decode()
    os.close(ours)
    if said:
        raise Refused(f"a program cannot be confined: {said}")


def _advice(error: OSError, hints: list[str]) -> str:
    if hints:
        return f"the kernel is set to refuse it ({error.strerror}); {' and '.join(hints)}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return (f"refused ({error.strerror}); in a container, allow user namespaces: "
                "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined")
    return f"refused ({error.strerror})"


def _hints() -> list[str]:
    found = []
    for path, forbids, remedy in _SWITCHES:
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == forbids:
                    found.append(remedy)
        except OSError:
            continue  # a kernel without that switch
    return found


def _own_mounts() -> bool:
    try:
        _unshare(_NEWNS)
    except PermissionError:
        return False  # root of a container: a user namespace may still be given
    return True


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _shown(packages: Sequence[str]) -> list[str]:
    """What is bound into the root, none inside another."""
    wanted = {*_SYSTEM, *packages, *(path for path in sys.path if path), os.path.join(sys.base_prefix, "lib")}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:  # what lies elsewhere, as on Nix
        files = {line.split(maxsplit=5)[-1].strip() for line in maps}
    wanted |= {os.path.dirname(file) for file in files if file.startswith("/") and ".so" in os.path.basename(file)}
    shown: list[str] = []
    for path in sorted(filter(os.path.exists, wanted), key=len):
        if not any(path == above or path.startswith(above + "/") for above in shown):
            shown.append(path)
    return shown


def _pivot(shown: list[str]) -> None:
    sources = {path: os.open(path, os.O_PATH) for path in shown if not os.path.islink(path) or not _is_near(path)}
    sources |= {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES}
    links = {path: os.readlink(path) for path in shown if path not in sources}
    root = "/tmp"  # any folder that exists does; it is covered in this namespace only
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.makedirs(root + FOLDER)
    if not any(path == "/tmp" or path.startswith("/tmp/") for path in shown):  # where a Python lies, it is seen instead
        os.symlink(FOLDER, root + "/tmp")
    for path, target in links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, source in sources.items():
        inside, here = root + path, f"/proc/self/fd/{source}"
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.isdir(here):
            os.makedirs(inside, exist_ok=True)
        else:
            os.close(os.open(inside, os.O_CREAT | os.O_RDONLY, 0o644))
        _mount(here, inside, "", _BIND | _REC)
        device = path.startswith("/dev/")
        _read_only(inside, _ATTR_RDONLY | _ATTR_NOSUID | (_ATTR_NOEXEC if device else _ATTR_NODEV))
        os.close(source)
    os.chdir(root)
    _check(_libc.syscall(ctypes.c_long(_PIVOT_ROOT[os.uname().machine]), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _DETACH), "umount")
    os.chdir("/")
    _read_only("/", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC, recursive=False)


def _is_near(path: str) -> bool:
    # /lib → usr/lib: the same link in the new root serves, one mount less to copy for each program
    return path in _SYSTEM and os.path.realpath(path) in _SYSTEM


def _become_nobody() -> None:
    # In a user namespace that knows no other users, root is somebody without rights outside, and stays.
    with suppress(PermissionError):
        os.setgroups([])
    try:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def maps_of(inside: int, outside: int, group_inside: int, group_outside: int) -> list[tuple[str, bytes]]:
    """Files below /proc, and what to write there, that show one user and group as another in a new user namespace."""
    return [("self/setgroups", b"deny"), ("self/uid_map", f"{inside} {outside} 1".encode()),
            ("self/gid_map", f"{group_inside} {group_outside} 1".encode())]


def maps_for_programs() -> list[tuple[str, bytes]]:
    """Those that show the caller's user to a program as one without rights."""
    return maps_of(_INSIDE, os.geteuid(), _INSIDE, os.getegid())


def _map(maps: Sequence[tuple[str, bytes]], proc: int) -> None:
    for path, text in maps:
        file = os.open(path, os.O_WRONLY, dir_fd=proc)
        os.write(file, text)
        os.close(file)


def fresh() -> int:
    """Like fork, into new namespaces of every kind; returns 0 in their first process."""
    return _check(_libc.syscall(*_fresh_copy), "clone")


def divide(status: int, most: int) -> None:
    """In process 1 of a namespace: returns in a copy of it, and ends with that copy, and everything inside with it.

    Process 1 closes its descriptors below `most` except `status`, on which it says how the copy ended, for `account`.
    """
    program = _fork(*_copy)
    if program == 0:
        _before_fork()  # in the copy, too: it is alone, and what is written before is copied twice
        _after_fork()
        return
    _control(_PDEATHSIG, 9, 0, 0, 0)
    _signal(_SIGCHLD, None)  # or a program that stops would interrupt the wait
    os.closerange(0, status)
    os.closerange(status + 1, most)
    if program > 0 and _write(status, b"\n", 1) == 1:  # fails where the server ended before the first line
        _wait(program, *_ended)
        _write(status, *_told)
    os._exit(0)


def account(said: bytes) -> tuple[int, float] | None:
    """Status as waitpid gives it and processor seconds, of what process 1 said; None if it was killed before."""
    _, mark, told = said.partition(_MARK)
    if not mark:
        return None
    status, user_s, user_us, system_s, system_us = _ACCOUNT.unpack_from(told)
    return status, user_s + system_s + (user_us + system_us) / 1e6


def settle(proc: int, maps: Sequence[tuple[str, bytes]], disk_mb: int) -> None:
    """Maps the caller's user, names the machine neutrally and mounts the working folder.

    `proc` is a descriptor of a /proc that shows the caller.
    """
    _prctl(_SET_DUMPABLE, 1)  # or its own id maps would belong to root
    _map(maps, proc)
    _prctl(_SET_DUMPABLE, 0)
    _check(_libc.sethostname(b"sandbox", 7), "sethostname")
    options = b"size=%dm,nr_inodes=%d,mode=700" % (disk_mb, _INODES)
    _check(_libc.mount(b"tmpfs", _FOLDER, b"tmpfs", _NOSUID | _NODEV | _NOEXEC, options), "mount")
    os.chdir(_FOLDER)


def address_space(proc: int) -> int:
    """Bytes of it that the caller uses. `proc` as for `settle`."""
    with open(os.open("self/statm", os.O_RDONLY, dir_fd=proc), encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def limit_all() -> None:
    """Resource limits that are the same for all programs, for good: the server's, too."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_STACK: _STACK}
    if sys.platform == "linux":
        limits |= {resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_SIGPENDING: 64}
    for which, value in limits.items():
        _lower(which, value)


def limit(used: int | None, memory_mb: int, cpu_s: float, disk_mb: int, threads: int | None) -> None:
    """A program's own resource limits for good, with `used` bytes of address space that do not count, of which None
    limits nothing; `threads` None leaves the number of processes alone."""
    _lower(resource.RLIMIT_FSIZE, disk_mb << 20)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_CPU, int(cpu_s) + 2)  # the server watches more closely; this holds should it be stopped
    if threads is not None:
        _lower(resource.RLIMIT_NPROC, threads + 2)  # the namespace's first process and the program's main thread
    if used is not None:
        _lower(resource.RLIMIT_AS, used + (memory_mb << 20))


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def seal(allowed: Filter) -> None:
    """Drops every capability for good and restricts the system calls to those allowed.

    What bounds capabilities, the bounding set, is left full: it says what running a file may give (capabilities(7)),
    and no file can be run: the list lacks execve, and no_new_privs and securebits, all locked, would give nothing.
    """
    _prctl(_SET_SECUREBITS, _ALL_SECUREBITS)
    _check(_libc.capset(_CAPABILITIES_HEADER, _NO_CAPABILITIES), "capset")
    _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(allowed))
