"""What stays behind: shared memory, queues, files, locks. The harness looks for each by its mark."""

from .attack import Attack, changed, reached, strayed

_LEFT = {  # the harness finds and removes each one after the run
    "file_in_shared_memory": "open('/dev/shm/fathom-' + MARK, 'w').write(MARK)",
    "shared_memory_object": """
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory('fathom-' + MARK, create=True, size=4096)
from multiprocessing import resource_tracker
resource_tracker.unregister('/fathom-' + MARK, 'shared_memory')
""",
    "shared_memory_by_the_c_library": "libc.shm_open(b'/fathom-' + MARK.encode(), 0o102, 0o600)",
    "posix_semaphore": """
libc.sem_open.restype = ctypes.c_void_p
libc.sem_open(b'/fathom-' + MARK.encode(), 0o100, 0o600, 1)
""",
    "system_v_memory": "call(29, KEY, 4096, 0o1600)",
    "system_v_semaphores": "call(64, KEY, 1, 0o1600)",
    "system_v_queue": "call(68, KEY, 0o1600)",
    "posix_queue_left": "call(240, b'fathom-' + MARK.encode(), 0o102, 0o600, 0)",
    "temporary_file_by_tempfile": "import tempfile; tempfile.mkstemp(prefix='fathom-' + MARK, dir='/tmp')",
    "file_in_the_home": "open('/root/fathom-' + MARK, 'w').write('')",
    "file_for_cron": "open('/var/spool/fathom-' + MARK, 'w').write('')",
    "lock_for_others": "import fcntl; open('/var/lock/fathom-' + MARK, 'w')",
}

ATTACKS = (
    *(Attack(name, "left-overs", source, strayed) for name, source in _LEFT.items()),
    Attack(
        "lock_held_on_a_file_of_others",
        "left-overs",
        "import fcntl\nfcntl.flock(os.open(SECRET_PATH, os.O_RDONLY), fcntl.LOCK_SH)\nprint('returned 0 0')",
        reached(),
    ),
    Attack(
        "library_locked_for_others",
        "left-overs",
        """
import fcntl
import time
fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
time.sleep(0.6)
""",
        lambda stage, outcome: outcome.beside is not None and b"locked by another" in outcome.beside.stdout,
        beside="""
import fcntl
import os
import time
for _ in range(60):
    time.sleep(0.01)
    descriptor = os.open(os.__file__, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        print('locked by another')
        break
    os.close(descriptor)
""",
    ),
    Attack(
        "message_in_a_lock",
        "left-overs",
        """
import fcntl
import time
fcntl.lockf(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB, 42, 1000)
time.sleep(0.6)
""",
        lambda stage, outcome: outcome.beside is not None and b"told (1000, 42)" in outcome.beside.stdout,
        beside="""
import fcntl
import os
import struct
import time
lock = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)
for _ in range(60):
    time.sleep(0.01)
    found = struct.unpack('hhqqi4x', fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_GETLK, lock))
    if found[0] != fcntl.F_UNLCK:
        print('told', found[2:4])
        break
""",
    ),
    Attack(
        "session_key_left",
        "left-overs",
        "call(250, 1, b'fathom-' + MARK.encode())\ncall(250, 0, -3, 0)",
        reached(),
    ),
    Attack("watch_left_on_a_file", "left-overs", "call(254, call(253), TARGET.encode(), 2)", reached()),
    Attack(
        "folder_that_cannot_be_entered_left",
        "left-overs",
        "os.mkdir(OUT + '/closed'); os.chmod(OUT + '/closed', 0)",
        changed,
    ),
)
