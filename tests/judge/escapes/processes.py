"""Processes of its own, which a program may not have, and processes of others, which it may not touch."""

from .attack import Attack, alive, peak_tasks, printed, reached, told_secret, victim_changed

_SEVEN = "print('child', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
_STARTED = {  # a child ends with 37, and the parent hears it from the kernel
    "fork": "pid = os.fork()\nif pid == 0: os._exit(37)\n" + _SEVEN,
    "fork_by_number": "pid = call(57)\nif pid == 0: os._exit(37)\n" + _SEVEN,
    "clone_by_number": "pid = call(56, 17, 0, 0, 0, 0)\nif pid == 0: os._exit(37)\n" + _SEVEN,
    "clone3_by_number": """
pid = call(435, (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17), 64)
if pid == 0: os._exit(37)
"""
    + _SEVEN,
    "fork_by_32_bit_call": """
import mmap
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
code = b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\x48\\x98\\xc3'
page[: len(code)] = code
pid = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
if pid == 0: os._exit(37)
"""
    + _SEVEN,
    "posix_spawn": "pid = os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 37'], {})\n" + _SEVEN,
    "subprocess": "import subprocess; print('child', subprocess.run(['/bin/sh', '-c', 'exit 37']).returncode)",
    "another_interpreter": """
import subprocess
print('child', subprocess.run([sys.executable, '-c', 'raise SystemExit(37)']).returncode)
""",
    "shell_command": "print('child', os.waitstatus_to_exitcode(os.system('exit 37')))",
    "pipe_to_a_shell": "print(os.popen('echo child $((30 + 7))').read())",
    "exec": "os.execv('/bin/sh', ['sh', '-c', 'echo child $((30 + 7))'])",
    "exec_of_the_interpreter": "os.execv(sys.executable, [sys.executable, '-c', 'print(\"child\", 30 + 7)'])",
    "exec_of_a_file_in_memory": """
descriptor = os.memfd_create('tool')
os.write(descriptor, open('/bin/sh', 'rb').read())
os.execve(descriptor, ['sh', '-c', 'echo child $((30 + 7))'], {})
""",
    "exec_of_own_file": """
open('tool', 'w').write('#!/bin/sh\\necho child $((30 + 7))\\n')
os.chmod('tool', 0o755)
os.execv('./tool', ['tool'])
""",
    "exec_by_the_loader": """
os.execv('/lib64/ld-linux-x86-64.so.2', ['ld', '/bin/sh', '-c', 'echo child $((30 + 7))'])
""",
    "multiprocessing": """
import multiprocessing
process = multiprocessing.get_context('fork').Process(target=os._exit, args=(37,))
process.start()
process.join()
print('child', process.exitcode)
""",
    "process_pool": """
from concurrent.futures import ProcessPoolExecutor
if __name__ == '__main__':
    with ProcessPoolExecutor(1) as pool:
        print('child', pool.submit(int, '37').result(timeout=3))
""",
    "terminal_of_its_own": "import pty; pid, _ = pty.fork()\nif pid == 0: os._exit(37)\n" + _SEVEN,
}

_DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
        libc.prctl(15, MARK[:15].encode())
        import time
        time.sleep(300)
    os._exit(0)
os.wait()
"""
_ALIVE = {
    "daemon": _DAEMON,
    "daemon_that_ignores_signals": """
import signal
for number in (1, 2, 3, 13, 14, 15):
    signal.signal(number, signal.SIG_IGN)
"""
    + _DAEMON,
    "daemon_by_exec": """
import subprocess
subprocess.Popen([MARK, '300'], executable='/bin/sleep', start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
""",
    "child_that_outlives": """
import time
if os.fork() == 0:
    os.closerange(0, 256)
    libc.prctl(15, MARK[:15].encode())
    time.sleep(300)
    os._exit(0)
""",
}

_HARMED = {
    "victim_killed": "os.kill(VICTIM, 9)",
    "victim_stopped": "os.kill(VICTIM, 19)",
    "victim_asked_to_end": "os.kill(VICTIM, 15)",
    "victim_killed_by_group": "os.killpg(os.getpgid(VICTIM), 9)",
    "victim_killed_by_thread": "call(234, VICTIM, VICTIM, 9)",
    "victim_killed_by_tkill": "call(200, VICTIM, 9)",
    "victim_killed_by_pidfd": "import signal; signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9)",
    "victim_killed_by_queued_signal": """
call(129, VICTIM, 9, (ctypes.c_int * 32)(9, 0, -1, 0, os.getpid(), os.getuid()))
""",
    "victim_killed_by_owner_of_a_descriptor": """
import fcntl
reader, writer = os.pipe()
fcntl.fcntl(reader, 8, VICTIM)  # F_SETOWN, F_SETSIG, then O_ASYNC
fcntl.fcntl(reader, 10, 9)
fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
os.write(writer, b'x')
""",
    "victim_made_nice": "os.setpriority(os.PRIO_PROCESS, VICTIM, 15)",
    "victim_made_idle": "os.sched_setscheduler(VICTIM, os.SCHED_IDLE, os.sched_param(0))",
    "victim_bound_to_one_core": "os.sched_setaffinity(VICTIM, {0})",
    "victim_limited": "import resource; resource.prlimit(VICTIM, resource.RLIMIT_NOFILE, (64, 64))",
    "victim_first_for_the_killer": "open(f'/proc/{VICTIM}/oom_score_adj', 'w').write('999')",
    "victim_memory_written": """
value = ctypes.create_string_buffer(b'overwritten!')
local = (ctypes.c_uint64 * 2)(ctypes.addressof(value), 12)
call(311, VICTIM, local, 1, (ctypes.c_uint64 * 2)(VICTIM_ADDRESS, 12), 1, 0)
""",
    "victim_memory_written_through_proc": """
with open(f'/proc/{VICTIM}/mem', 'r+b', 0) as memory:
    memory.seek(VICTIM_ADDRESS)
    memory.write(b'overwritten!')
""",
    "victim_memory_written_by_ptrace": """
call(101, 16, VICTIM, 0, 0)
os.waitpid(VICTIM, 0x40000000)
call(101, 4, VICTIM, VICTIM_ADDRESS, 0x4142434445464748)
call(101, 17, VICTIM, 0, 0)
""",
}

_READ = {
    "victim_memory_read": """
room = ctypes.create_string_buffer(100)
local = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 100)
call(310, VICTIM, local, 1, (ctypes.c_uint64 * 2)(VICTIM_ADDRESS, 100), 1, 0)
print(room.raw)
""",
    "victim_memory_read_through_proc": """
with open(f'/proc/{VICTIM}/mem', 'rb', 0) as memory:
    memory.seek(VICTIM_ADDRESS)
    print(memory.read(100))
""",
    "victim_memory_read_by_ptrace": """
call(101, 0x4206, VICTIM, 0, 0)
call(101, 0x4207, VICTIM, 0, 0)
os.waitpid(VICTIM, 0x40000000)
libc.ptrace.restype = ctypes.c_long
found = b''
for offset in range(0, 96, 8):
    found += libc.ptrace(2, VICTIM, ctypes.c_void_p(VICTIM_ADDRESS + offset), None).to_bytes(8, 'little', signed=True)
print(found)
""",
    "victim_descriptor_taken": """
for number in range(3, 10):
    descriptor = call(438, call(434, VICTIM, 0), number, 0)
    if descriptor >= 0:
        print(os.pread(descriptor, 100, 0))
        break
""",
}

_REACHED = {
    "signal_to_everybody_possible": "call(62, -1, 0)",  # signal 0 only asks
    "signal_to_the_parent": "call(62, os.getppid() or 1 << 22, 18)",
    "signal_to_the_harness": "call(62, HARNESS, 0)",
    "parent_traced": "call(101, 0x4206, os.getppid() or 1 << 22, 0, 0)",
    "parent_descriptor_taken": "call(438, call(434, os.getppid() or 1 << 22, 0), 1, 0)",
    "own_priority_raised": "call(141, 0, 0, -10)",
    "real_time_scheduling": "call(144, 0, 1, (ctypes.c_int * 1)(1))",
    "deadline_scheduling": """
call(314, 0, (ctypes.c_uint64 * 7)(6 << 32 | 56, 0, 0, 500_000_000, 1_000_000_000, 1_000_000_000, 0), 0)
""",
    "real_time_disk_access": "call(251, 1, 0, 1 << 13)",
    "victim_compared": "call(312, os.getpid(), VICTIM, 1, 0, 0)",
    "victim_pages_located": """
call(279, VICTIM, 1, (ctypes.c_uint64 * 1)(VICTIM_ADDRESS & -4096), 0, (ctypes.c_int * 1)(), 0)
""",
    "victim_memory_advised": """
call(440, call(434, VICTIM, 0), (ctypes.c_uint64 * 2)(VICTIM_ADDRESS & -4096, 4096), 1, 20, 0)
""",
    "victim_futexes_listed": "call(274, VICTIM, (ctypes.c_uint64 * 1)(), (ctypes.c_uint64 * 1)())",
    "session_of_its_own": "call(112)",
    "traced_by_the_parent": "call(101, 0, 0, 0, 0)",
}

ATTACKS = (
    *(Attack(name, "processes", source, printed("child 37")) for name, source in _STARTED.items()),
    *(Attack(name, "processes", source, alive) for name, source in _ALIVE.items()),
    *(Attack(name, "processes", source, victim_changed) for name, source in _HARMED.items()),
    *(Attack(name, "processes", source, told_secret) for name, source in _READ.items()),
    *(Attack(name, "processes", source, reached()) for name, source in _REACHED.items()),
    Attack(
        "many_processes",
        "processes",
        """
import time
for _ in range(60):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
for _ in range(60):
    os.wait()
""",
        peak_tasks(50),
        measured=True,
    ),
)
