"""The system calls that a program may make, as a filter in the kernel's own bytecode. Everything else fails with EPERM.

The list is what Python, numpy and the C library need to compute, to start threads and to use files, pipes and
socketpairs. What makes a process, runs a file, opens a socket, or changes a mount, a user or another process is absent.
"""

from __future__ import annotations

import errno
import os
import struct

# name, number on x86_64, number on aarch64; "-" where the machine lacks it (Linux: unistd_64.h, asm-generic/unistd.h)
_CALLS = """
read 0 63|write 1 64|readv 19 65|writev 20 66|pread64 17 67|pwrite64 18 68|preadv 295 69|pwritev 296 70
preadv2 327 286|pwritev2 328 287|close 3 57|close_range 436 436|lseek 8 62|fstat 5 80|stat 4 -|lstat 6 -
newfstatat 262 79|statx 332 291|access 21 -|faccessat 269 48|faccessat2 439 439|open 2 -|openat 257 56|creat 85 -
getdents64 217 61|getcwd 79 17|chdir 80 49|fchdir 81 50|rename 82 -|renameat 264 38|renameat2 316 276|mkdir 83 -
mkdirat 258 34|rmdir 84 -|link 86 -|linkat 265 37|unlink 87 -|unlinkat 263 35|symlink 88 -|symlinkat 266 36
readlink 89 -|readlinkat 267 78|chmod 90 -|fchmod 91 52|fchmodat 268 53|fchmodat2 452 452|umask 95 166
truncate 76 45|ftruncate 77 46|fallocate 285 47|fadvise64 221 223|fsync 74 82|fdatasync 75 83
utime 132 -|utimes 235 -|futimesat 261 -|utimensat 280 88|statfs 137 43|fstatfs 138 44|sendfile 40 71
copy_file_range 326 285|getxattr 191 8|lgetxattr 192 9|fgetxattr 193 10|listxattr 194 11|llistxattr 195 12
flistxattr 196 13|mmap 9 222|munmap 11 215|mprotect 10 226|mremap 25 216|brk 12 214|msync 26 227
rt_sigaction 13 134|rt_sigprocmask 14 135|rt_sigreturn 15 139|rt_sigpending 127 136|rt_sigtimedwait 128 137
rt_sigsuspend 130 133|sigaltstack 131 132|pause 34 -|alarm 37 -|getitimer 36 102|setitimer 38 103
pipe 22 -|pipe2 293 59|select 23 -|pselect6 270 72|poll 7 -|ppoll 271 73|epoll_create 213 -|epoll_create1 291 20
epoll_ctl 233 21|epoll_wait 232 -|epoll_pwait 281 22|epoll_pwait2 441 441|eventfd 284 -|eventfd2 290 19
dup 32 23|dup2 33 -|dup3 292 24|nanosleep 35 101|clock_nanosleep 230 115|clock_gettime 228 113|clock_getres 229 114
gettimeofday 96 169|time 201 -|times 100 153|getrusage 98 165|getrlimit 97 163|setrlimit 160 164|sysinfo 99 179
uname 63 160|getpid 39 172|getppid 110 173|gettid 186 178|getuid 102 174|geteuid 107 175|getgid 104 176
getegid 108 177|getresuid 118 148|getresgid 120 150|getgroups 115 158|getpgrp 111 -|getpgid 121 155|getsid 124 156
getpriority 140 141|capget 125 90|futex 202 98|get_robust_list 274 100|set_robust_list 273 99|set_tid_address 218 96
rseq 334 293|membarrier 324 283|restart_syscall 219 128|arch_prctl 158 -|sched_yield 24 124
sched_getaffinity 204 123|sched_getparam 143 121|sched_getscheduler 145 120|sched_get_priority_max 146 125
sched_get_priority_min 147 126|sched_rr_get_interval 148 127|getcpu 309 168|getrandom 318 278|exit 60 93
exit_group 231 94|shutdown 48 210|getsockopt 55 209|getsockname 51 204
getpeername 52 205
"""
# Looked at more closely, or answered with ENOSYS so that the C library falls back to an older call.
_SPECIAL = """
clone 56 220|kill 62 129|tgkill 234 131|fcntl 72 25|ioctl 16 29|prctl 157 167|prlimit64 302 261|socketpair 53 199
clone3 435 435|openat2 437 437|madvise 28 233|sendto 44 206|recvfrom 45 207
"""
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the lists, AUDIT_ARCH_*
_X32 = 0x40000000
_YOUNGER = 463  # calls from this number on are unknown to these lists: ENOSYS, as an older kernel says

_THREAD = 0x00010000 | 0x00000100 | 0x00000800  # CLONE_THREAD, CLONE_VM, CLONE_SIGHAND
_NOT_A_THREAD = 0x7E020080 | 0x00002000 | 0x00004000 | 0x00001000  # CLONE_NEW*, _PTRACE, _VFORK, _PIDFD
# Copies, flags, sizes. No owners, no signals; no locks: on a library's file, others outside would wait for them.
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032, 1034)
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_PRCTL = (3, 15, 16, 21, 23, 27, 39, 0x53564D41)  # PR_SET_NAME, what only reads, and names for memory (malloc)
_MADVISE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 22, 23, 102, 103)  # not 12: merging pages tells who else has the same
_MESSAGE = 0x2 | 0x20 | 0x40 | 0x100 | 0x4000  # MSG_PEEK _TRUNC _DONTWAIT _WAITALL _NOSIGNAL; no urgent data
_AF_UNIX = 1

# Linux: include/uapi/linux/bpf_common.h and seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _AND, _JUMP, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x05, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in seccomp_data; an argument's low half (little-endian)
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def supported() -> bool:
    """Whether this machine's system calls are listed here."""
    return os.uname().machine in _ARCHITECTURES


def numbers(machine: str) -> dict[str, int]:
    """Every system call that the filter knows by name, except those that the machine lacks."""
    column, _ = _ARCHITECTURES[machine]
    calls = [entry.split() for entry in f"{_CALLS}{_SPECIAL}".replace("\n", "|").split("|") if entry]
    return {name: int(columns[column]) for name, *columns in calls if columns[column] != "-"}


def program(machine: str, pid: int | None) -> list[Instruction]:
    """The filter for a process that has this `pid` in its namespace and may signal itself only (None: nobody)."""
    number = numbers(machine)
    _, architecture = _ARCHITECTURES[machine]
    plain = {entry.split()[0] for entry in _CALLS.replace("\n", "|").split("|") if entry}
    own = () if pid is None else (pid,)
    special = {
        "clone": [(_LOAD, 0, 0, _ARGUMENT), (_AND, 0, 0, _THREAD | _NOT_A_THREAD), *_one_of((_THREAD,))],
        "clone3": [(_RETURN, 0, 0, _ABSENT)],
        "openat2": [(_RETURN, 0, 0, _ABSENT)],
        "kill": [(_LOAD, 0, 0, _ARGUMENT), *_one_of(own)],
        "tgkill": [(_LOAD, 0, 0, _ARGUMENT), *_one_of(own)],
        "fcntl": [(_LOAD, 0, 0, _ARGUMENT + 8), *_one_of(_FCNTL)],
        "ioctl": [(_LOAD, 0, 0, _ARGUMENT + 8), *_one_of(_IOCTL)],
        "prctl": [(_LOAD, 0, 0, _ARGUMENT), *_one_of(_PRCTL)],
        "prlimit64": [(_LOAD, 0, 0, _ARGUMENT), *_one_of((0, *own))],
        "madvise": [(_LOAD, 0, 0, _ARGUMENT + 16), *_one_of(_MADVISE)],
        "sendto": [(_LOAD, 0, 0, _ARGUMENT + 24), (_AND, 0, 0, ~_MESSAGE & 0xFFFFFFFF), *_one_of((0,))],
        "recvfrom": [(_LOAD, 0, 0, _ARGUMENT + 24), (_AND, 0, 0, ~_MESSAGE & 0xFFFFFFFF), *_one_of((0,))],
        "socketpair": [(_LOAD, 0, 0, _ARGUMENT), *_one_of((_AF_UNIX,))],
    }
    allowed = [(_RETURN, 0, 0, _ALLOW)]
    rules = sorted((n, allowed if name in plain else special[name]) for name, n in number.items())
    cases: list[tuple[int, list[Instruction]]] = []  # from this number on, this answer
    for n, answer in rules:
        if not cases or cases[-1][0] != n:
            cases.append((n, answer))
        else:
            cases[-1] = (n, answer)
        cases.append((n + 1, [(_RETURN, 0, 0, _REFUSE)]))
    merged = [(0, [(_RETURN, 0, 0, _REFUSE)])]
    for n, answer in [*cases, (_YOUNGER, [(_RETURN, 0, 0, _ABSENT)]), (_X32, [(_RETURN, 0, 0, _KILL)])]:
        if merged[-1][0] == n:
            merged.pop()
        if not merged or merged[-1][1] != answer:
            merged.append((n, answer))
    return [
        (_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER),
        *_search(merged),
    ]


def assembled(instructions: list[Instruction]) -> bytes:
    """The filter as the kernel reads it."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _one_of(values: tuple[int, ...]) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _search(cases: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    # A tree: the kernel runs a filter for each call, and once for every call's number when it is loaded.
    if len(cases) == 1:
        return cases[0][1]
    middle = len(cases) // 2
    low, high = _search(cases[:middle]), _search(cases[middle:])
    if len(low) < 256:
        return [(_AT_LEAST, len(low), 0, cases[middle][0]), *low, *high]
    return [(_AT_LEAST, 0, 1, cases[middle][0]), (_JUMP, 0, 0, len(low)), *low, *high]
