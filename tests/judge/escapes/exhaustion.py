"""More than the limits allow: bounded, so that a machine without the sandbox bears it."""

from fathom.judge.sandbox import Limits

from .attack import Attack, See, counted, peak_mb, peak_tasks, reached

MEMORY_MB = 128
_TOO_MUCH_MB = 420
_MEMORY = Limits(memory_mb=MEMORY_MB, cpu_s=4.0, wall_s=6.0)

# Resident memory is measured from outside.
_RESIDENT = {
    "memory_in_one_piece": "held = bytearray(SIZE)\nheld[::4096] = b'x' * (SIZE // 4096)\nimport time; time.sleep(0.2)",
    "memory_in_small_pieces": """
import time
held = [bytes(100_000) + b'x' for _ in range(SIZE // 100_000)]
time.sleep(0.2)
""",
    "memory_by_mmap": """
import mmap
import time
held = []
for _ in range(SIZE >> 20):
    page = mmap.mmap(-1, 1 << 20)
    page[:] = b'x' * (1 << 20)
    held.append(page)
time.sleep(0.2)
""",
    "memory_by_malloc": """
import time
libc.malloc.restype = ctypes.c_void_p
for _ in range(SIZE >> 20): ctypes.memset(libc.malloc(1 << 20), 1, 1 << 20)
time.sleep(0.2)
""",
    "memory_after_the_limit_is_raised": """
import resource
import time
for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
    try:
        resource.setrlimit(limit, (-1, -1))
    except (OSError, ValueError):
        pass
held = bytearray(SIZE)
held[::4096] = b'x' * (SIZE // 4096)
time.sleep(0.2)
""",
    "memory_error_swallowed": """
import time
held = []
for _ in range(SIZE >> 20):
    try:
        held.append(b'x' * (1 << 20))
    except MemoryError:
        pass
time.sleep(0.2)
""",
    "memory_in_several_processes": """
import time
for _ in range(4):
    if os.fork() == 0:
        held = b'x' * (SIZE // 4)
        time.sleep(0.3)
        os._exit(0)
for _ in range(4): os.wait()
""",
    "memory_in_threads": """
import threading
import time
all_filled = threading.Barrier(7)

def fill():
    held = ctypes.create_string_buffer(60 << 20)
    ctypes.memset(held, 1, 60 << 20)
    all_filled.wait(1.0)
    time.sleep(0.2)

threads = [threading.Thread(target=fill) for _ in range(7)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    "memory_by_numpy": "import numpy, time\nheld = numpy.ones(SIZE // 8)\ntime.sleep(0.2)",
    "memory_grown_by_mremap": """
import mmap
import time
held = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.resize(SIZE)
for offset in range(0, SIZE, 4096): held[offset] = 1
time.sleep(0.2)
""",
    "memory_shared_between_mappings": """
import mmap
import time
held = []
for _ in range(SIZE >> 20):
    page = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    page[:] = b'x' * (1 << 20)
    held.append(page)
time.sleep(0.2)
""",
}

# Memory that no process has mapped: what the kernel took is what the program could write.
_HELD: dict[str, tuple[str, float]] = {
    "memory_in_anonymous_files": (
        """
for number in range(42):
    descriptor = os.memfd_create('x')
    for _ in range(10):
        os.write(descriptor, b'x' * (1 << 20))
    print('held', 10 * (number + 1), flush=True)
""",
        2 * MEMORY_MB,
    ),
    "memory_in_files_of_shared_memory": (
        """
paths = []
try:
    for number in range(42):
        paths.append(f'/dev/shm/fathom-{MARK}-{number}')
        with open(paths[-1], 'wb') as file: file.write(b'x' * (10 << 20))
        print('held', 10 * (number + 1), flush=True)
finally:
    for path in paths: os.unlink(path)
""",
        2 * MEMORY_MB,
    ),
    "memory_in_system_v_segments": (
        """
import time
keys = []
libc.shmat.restype = ctypes.c_void_p
try:
    for number in range(21):
        keys.append(libc.shmget(0, 20 << 20, 0o1600))
        address = libc.shmat(keys[-1], None, 0)
        if keys[-1] < 0 or address in (None, 2**64 - 1): break
        ctypes.memset(address, 1, 20 << 20)
        libc.shmdt(ctypes.c_void_p(address))
        print('held', 20 * (number + 1), flush=True)
finally:
    for key in keys: libc.shmctl(key, 0, None)
""",
        2 * MEMORY_MB,
    ),
    "memory_in_pipes": (
        """
import fcntl
size = 0
held = []
for _ in range(300):
    reader, writer = os.pipe()
    held += [reader, writer]
    fcntl.fcntl(writer, 1031, 1 << 20)
    os.set_blocking(writer, False)
    size += os.write(writer, b'x' * (1 << 20))
    print('held', size >> 20, flush=True)
""",
        2 * MEMORY_MB,
    ),
    "memory_in_sockets": (
        """
import socket
size = 0
held = []
for _ in range(1000):
    pair = socket.socketpair()
    held.append(pair)
    pair[0].setsockopt(socket.SOL_SOCKET, 32, 1 << 22)
    pair[0].setblocking(False)
    try:
        for _ in range(400): size += pair[0].send(b'x' * 100_000)
    except BlockingIOError:
        pass
    if size > 420 << 20: break
    print('held', size >> 20, flush=True)
""",
        2 * MEMORY_MB,
    ),
    "files_too_large": (
        """
with open('large', 'wb', 0) as file:
    for number in range(40):
        if file.write(b'x' * (1 << 20)) != 1 << 20: break
        print('held', number + 1, flush=True)
os.unlink('large')
""",
        20,
    ),
    "many_files_too_large_together": (
        """
for number in range(40):
    with open(f'file{number}', 'wb', 0) as file:
        if file.write(b'x' * (1 << 20)) != 1 << 20: break
    print('held', number + 1, flush=True)
""",
        20,
    ),
    "many_small_files": (
        """
for number in range(3_000):
    os.close(os.open(f'file{number}', os.O_CREAT))
    if number % 100 == 99: print('held', number + 1, flush=True)
""",
        2_500,
    ),
    "deleted_files_kept_open": (
        """
held = []
for number in range(40):
    held.append(os.open('gone', os.O_CREAT | os.O_RDWR))
    os.unlink('gone')
    if os.write(held[-1], b'x' * (1 << 20)) != 1 << 20: break
    print('held', number + 1, flush=True)
""",
        20,
    ),
    "disk_reserved": (
        """
descriptor = os.open('reserved', os.O_CREAT | os.O_RDWR)
os.posix_fallocate(descriptor, 0, 60 << 20)
print('held', os.fstat(descriptor).st_blocks >> 11)
os.unlink('reserved')
""",
        20,
    ),
    "descriptors": (
        """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [os.dup(0) for _ in range(4000)]
print('held', len(held))
""",
        3000,
    ),
    "descriptors_in_flight": (
        """
import array
import socket
left, right = socket.socketpair()
for number in range(20):
    left.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 250))])
    print('held', 250 * (number + 1), flush=True)
""",
        3000,
    ),
    "timers": (
        """
timer = ctypes.c_int()
for number in range(20_000):
    if libc.syscall(222, 1, 0, ctypes.byref(timer)) != 0: break
    if number % 1000 == 999: print('held', number + 1, flush=True)
""",
        10_000,
    ),
    "queued_signals": (
        """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
for number in range(20_000):
    if libc.sigqueue(os.getpid(), signal.SIGRTMIN, 0) != 0: break
    if number % 1000 == 999: print('held', number + 1, flush=True)
""",
        10_000,
    ),
    "memory_that_cannot_be_swapped": (
        """
import mmap
page = mmap.mmap(-1, 64 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(64 << 20)) == 0: print('held 64')
""",
        32,
    ),
}

_TASKS = {
    "bomb_of_processes": (
        """
import time
end = time.time() + 0.3
count = 0
while count < 6 and time.time() < end:
    count += 1
    try:
        os.fork()  # every child goes on: 64 processes
    except OSError:
        pass
time.sleep(max(0, end - time.time()))
""",
        50,
    ),
    "bomb_of_threads": (
        """
import threading
import time
threads = []
try:
    for _ in range(150):
        threads.append(threading.Thread(target=time.sleep, args=(0.5,)))
        threads[-1].start()
except RuntimeError:
    threads.pop()
for thread in threads: thread.join()
""",
        100,
    ),
    "bomb_of_threads_by_the_c_library": (
        """
import time
function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda nothing: time.sleep(0.5))
thread = ctypes.c_ulong()
threads = []
for _ in range(150):
    if libc.pthread_create(ctypes.byref(thread), None, function, None) == 0: threads.append(thread.value)
for value in threads: libc.pthread_join(ctypes.c_ulong(value), None)
""",
        100,
    ),
    "bomb_of_threads_after_the_limit_is_raised": (
        """
import resource
import threading
import time
try:
    resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))
except (OSError, ValueError):
    pass
threads = []
try:
    for _ in range(150):
        threads.append(threading.Thread(target=time.sleep, args=(0.5,)))
        threads[-1].start()
except RuntimeError:
    threads.pop()
for thread in threads: thread.join()
""",
        100,
    ),
}

_KEPT_FROM_KILLING: dict[str, tuple[str, See]] = {
    "spared_by_the_killer": (
        "print('returned', os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-900'), 0)",
        reached(),
    ),
    "core_file_of_its_memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)); print('returned 0 0')",
        reached(),
    ),
    "limit_of_file_size_raised": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)); print('returned 0 0')",
        reached(),
    ),
}

ATTACKS = (
    *(
        Attack(
            name,
            "exhaustion",
            f"SIZE = {_TOO_MUCH_MB} << 20\n" + source,
            peak_mb(_TOO_MUCH_MB * 0.9),
            limits=_MEMORY,
            measured=True,
        )
        for name, source in _RESIDENT.items()
    ),
    *(
        Attack(name, "exhaustion", source, counted(int(least)), limits=_MEMORY)
        for name, (source, least) in _HELD.items()
    ),
    *(
        Attack(name, "exhaustion", source, peak_tasks(least), limits=_MEMORY, measured=True)
        for name, (source, least) in _TASKS.items()
    ),
    *(Attack(name, "exhaustion", source, seen) for name, (source, seen) in _KEPT_FROM_KILLING.items()),
)
