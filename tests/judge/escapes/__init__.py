"""Every attack on the sandbox, by kind; tests/judge/test_escapes.py runs them."""

from . import (
    devices,
    exhaustion,
    files,
    forging,
    in_python,
    leftovers,
    namespaces,
    network,
    processes,
    secrets,
    syscalls,
)
from .attack import Attack

ATTACKS: tuple[Attack, ...] = tuple(
    attack
    for room in (
        files,
        namespaces,
        network,
        processes,
        syscalls,
        secrets,
        in_python,
        forging,
        leftovers,
        devices,
        exhaustion,
    )
    for attack in room.ATTACKS
)
assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
