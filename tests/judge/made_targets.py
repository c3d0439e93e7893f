"""Functions for the pool's workers that hang, die and eat memory on request."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def obey(item: Any) -> Any:
    """What the item's first word says."""
    match str(item).split():
        case ["hang"]:
            return 9**9**9
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["exit"]:
            os._exit(3)
        case ["raise"]:
            raise KeyError("x")
        case ["eat"]:
            return len(bytearray(1 << 34))
        case ["swallow"]:  # as libraries do
            held: list[bytearray] = []
            try:
                while True:
                    held.append(bytearray(1 << 24))
            except MemoryError:
                return "not equal"
        case ["print"]:
            print("noise on standard output", flush=True)
        case ["torch"]:
            return "torch" in sys.modules
        case ["pid"]:
            return os.getpid()
    return item


def linger(item: str) -> str:
    """Starts a process, tells who is who, and sleeps for ever."""
    started = subprocess.Popen(["sleep", "1000"])
    for name, pid in (("keeper", os.getppid()), ("server", os.getpid()), ("started", started.pid)):
        Path("new").write_text(str(pid))
        os.rename("new", name)
    while True:
        time.sleep(100)
