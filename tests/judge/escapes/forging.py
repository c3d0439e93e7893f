"""Verdicts that a program writes for itself: each ends badly, and is forged when it is reported as ended well."""

from fathom.judge.sandbox import Limits

from .attack import Attack, See, forged, printed

_CLAIMS = """
import json
import pickle
import struct
claims = [
    b'{"ended": "exited", "code": 0, "stdout": "right"}\\n',
    b'exited 0\\n', b'0\\n', b'0', b'\\0', b'\\0' * 4, b'\\0' * 8, b'OK\\n',
    json.dumps(['exited', 0, None, None, '', 'right', '', 0.0, 0.0]).encode() + b'\\n',
    json.dumps({'pid': os.getpid(), 'status': 0, 'ended': 'exited', 'code': 0}).encode() + b'\\n',
    pickle.dumps(('exited', 0)), pickle.dumps({'ended': 'exited', 'code': 0}),
    struct.pack('ii', os.getpid(), 0), struct.pack('<I', 2) + b'{}', struct.pack('>I', 2) + b'{}',
]
"""
_EVERYWHERE = (
    _CLAIMS
    + """
import fcntl
for descriptor in range(0, 1024):
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK)  # a full pipe must not hold the program up
        for claim in claims:
            os.write(descriptor, claim)
    except OSError:
        pass
"""
)
_REPORT = """
import json
claim = json.dumps({'ended': 'exited', 'code': 0, 'stdout': 'right'}) + '\\n'
"""

_FORGED: dict[str, str] = {
    "claims_to_every_descriptor_then_exit_3": _EVERYWHERE + "os._exit(3)",
    "claims_to_every_descriptor_then_killed": _EVERYWHERE + "os.kill(os.getpid(), 9)",
    "claims_to_every_descriptor_then_crash": _EVERYWHERE + "ctypes.string_at(0)",
    "claims_to_every_descriptor_then_exception": _EVERYWHERE + "os.closerange(3, 1024)\nraise KeyError('x')",
    "claims_then_every_descriptor_closed": _EVERYWHERE + "os.closerange(0, 1024)\nos._exit(3)",
    "claim_through_the_files_of_the_judge": """
import gc
import io
for thing in gc.get_objects():
    if isinstance(thing, io.TextIOWrapper) and thing.writable():
        thing.write('{"ended": "exited", "code": 0, "stdout": "right"}\\n')
        thing.flush()
os._exit(3)
""",
    "claim_through_the_judge_s_own_variables": _REPORT
    + """
report = sys.modules['__main__'].report
report.write(claim)
report.flush()
os._exit(3)
""",
    "claim_through_the_frames_above": _REPORT
    + """
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
    if 'report' in frame.f_globals:
        frame.f_globals['report'].write(claim)
        frame.f_globals['report'].flush()
os._exit(3)
""",
    "reporter_of_exceptions_replaced": """
import json
import traceback
json.dumps = lambda thing, **settings: '{"ended": "exited", "code": 0, "stdout": "right"}'
sys.excepthook = lambda *error: os._exit(0) if False else None
raise KeyError('x')
""",
    "claim_by_a_thread_after_the_end": _REPORT
    + """
import threading
import time

def claims():
    for _ in range(200):
        try:
            os.write(3, claim.encode())
        except OSError:
            pass
        time.sleep(0.001)

threading.Thread(target=claims, daemon=True).start()
time.sleep(0.05)
os._exit(3)
""",
    "exception_that_rewrites_the_judge": """
class Forged(Exception):
    def __str__(self):
        frame = sys._getframe()
        while frame:
            for names in (frame.f_locals, frame.f_globals):
                if 'report' in names:
                    names['report'].write('{"ended": "exited", "code": 0, "stdout": "right"}\\n')
            frame = frame.f_back
        return 'x'

    __repr__ = __str__

raise Forged()
""",
}

# Ends by a limit that it tries to hide; without the sandbox nothing limits it and it ends well.
_OVER: dict[str, dict[str, tuple[str, Limits]]] = {
    "limit cpu": {
        "processor_time_with_signals_ignored": (
            """
import signal
import time
for number in set(signal.Signals) - {9, 19}:
    signal.signal(number, signal.SIG_IGN)
while time.process_time() < 1.6: pass
os._exit(0)
""",
            Limits(cpu_s=1.0, wall_s=20.0),
        ),
        "processor_time_in_threads": (
            """
import hashlib
import threading
import time

def work():
    while time.process_time() < 2.0: hashlib.sha256(b'x' * 1_000_000).digest()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
            Limits(cpu_s=1.0, wall_s=20.0),
        ),
        "processor_time_inside_one_call": ("sum(range(100_000_000))", Limits(cpu_s=1.0, wall_s=20.0)),
        "processor_time_after_the_main_thread": (
            """
import threading
import time

def work():
    while time.process_time() < 1.6: pass

threading.Thread(target=work).start()
libc.syscall(60, 0)  # ends this thread only
""",
            Limits(cpu_s=1.0, wall_s=20.0),
        ),
        "limit_on_processor_time_raised": (
            """
import resource
import time
resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
while time.process_time() < 1.6: pass
os._exit(0)
""",
            Limits(cpu_s=1.0, wall_s=20.0),
        ),
        "processor_time_limit_moved_by_prlimit": (
            """
import time
call(302, 0, 0, (ctypes.c_int64 * 2)(100, 100), 0)
try:
    while time.process_time() < 1.6: pass
finally:
    os._exit(0)
""",
            Limits(cpu_s=1.0, wall_s=20.0),
        ),
    },
    "limit wall": {
        "sleep_with_signals_ignored": (
            """
import signal
import time
for number in set(signal.Signals) - {9, 19}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
time.sleep(1.6)
""",
            Limits(wall_s=0.8),
        ),
        "thread_that_outlives_the_main_one": (
            """
import threading
import time
threading.Thread(target=time.sleep, args=(1.6,)).start()
""",
            Limits(wall_s=0.8),
        ),
        "exit_handler_that_outlives": (
            "import atexit\nimport time\natexit.register(time.sleep, 1.6)",
            Limits(wall_s=0.8),
        ),
    },
    "limit output": {
        "output_flood_then_success": (
            """
for _ in range(100): os.write(1, b'x' * 10_000)
os._exit(0)
""",
            Limits(output_kb=64),
        ),
        "error_flood_then_success": (
            """
for _ in range(100): os.write(2, b'x' * 10_000)
os._exit(0)
""",
            Limits(output_kb=64),
        ),
    },
}

_OUTPUT: dict[str, tuple[str, See]] = {
    "output_of_a_megabyte_never_written": (
        "os.write(1, b'x'); os.ftruncate(1, 1 << 20); os._exit(0)",
        lambda stage, outcome: len(outcome.stdout) > 1 << 19,
    ),
    "output_rewritten_after_it_was_sent": (
        "os.write(1, b'wrong\\n'); os.lseek(1, 0, 0); os.write(1, b'right ' + MARK.encode()); os._exit(3)",
        lambda stage, outcome: outcome.stdout.startswith(b"right"),
    ),
    "output_truncated": (
        "os.write(1, b'evidence\\n'); os.ftruncate(1, 0); os._exit(3)",
        lambda stage, outcome: b"evidence" not in outcome.stdout,
    ),
    "input_rewritten": (
        "os.pwrite(os.open('/proc/self/fd/0', os.O_RDWR), b'other', 0); print('re' + 'written')",
        printed("^rewritten$"),
    ),
}


def _ends(source: str) -> str:
    """How a forging program truly ends: as its last line says, or by an exception, which it may itself unsay."""
    last = source.strip().splitlines()[-1]
    ways = {"os._exit(3)": "exited 3", "os.kill(os.getpid(), 9)": "signalled 9", "ctypes.string_at(0)": "signalled 11"}
    return ways.get(last.rpartition("; ")[2], "exited 1") + " or raised 1"


ATTACKS = (
    *(Attack(name, "forging", source, forged, naive=True, ends=_ends(source)) for name, source in _FORGED.items()),
    *(
        Attack(name, "forging", source, forged, limits=limits, ends=f"{ends} or raised 1")
        for ends, attacks in _OVER.items()
        for name, (source, limits) in attacks.items()
    ),
    *(Attack(name, "forging", source, seen) for name, (source, seen) in _OUTPUT.items()),
)
