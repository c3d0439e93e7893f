"""System calls by number that no program needs: each opens a part of the kernel with a history of holes."""

import errno

from .attack import Attack, printed, reached

_ATTRIBUTES = "(ctypes.c_uint32 * 30)(1, 120, 0)"
_CALLS: dict[str, tuple[str, tuple[int, ...]]] = {
    "bpf_map": ("call(321, 0, (ctypes.c_uint32 * 20)(2, 4, 4, 1), 80)", ()),
    "posix_timer": ("call(222, 1, 0, (ctypes.c_int * 1)())", ()),
    "io_uring": ("call(425, 1, ctypes.create_string_buffer(256))", ()),
    "userfaultfd": ("call(323, 1)", ()),
    "perf_event": (f"call(298, {_ATTRIBUTES}, 0, -1, -1, 0)", ()),
    "key_added": ("call(248, b'user', b'fathom-escape', b'x', 1, -2)", ()),
    "keyring_of_the_user": ("call(250, 0, -4, 0)", ()),
    "asynchronous_io": ("call(206, 1, (ctypes.c_uint64 * 1)())", ()),
    "secret_memory": ("call(447, 0)", (errno.EINVAL,)),
    "old_page_mapping": ("call(216, 0, 0, 0, 0, 0)", (errno.EINVAL,)),
    "pages_given_to_a_pipe": (
        """
reader, writer = os.pipe()
page = ctypes.create_string_buffer(4096)
call(278, writer, (ctypes.c_uint64 * 2)(ctypes.addressof(page), 4096), 1, 8)
""",
        (),
    ),
    "memory_policy": ("call(238, 0, 0, 0)", ()),
    "pages_moved_between_nodes": (
        "call(256, 0, 64, (ctypes.c_uint64 * 1)(1), (ctypes.c_uint64 * 1)(1))",
        (errno.EINVAL,),
    ),
    "reboot_refused_by_its_magic_only": ("call(169, 0, 0, 0, 0)", (errno.EINVAL,)),
    "swap_on_a_missing_file": ("call(167, b'/nonexistent/swap', 0)", (errno.ENOENT,)),
    "swap_off_a_missing_file": ("call(168, b'/nonexistent/swap')", (errno.ENOENT,)),
    "clock_set_to_nothing": ("call(164, 0, 0)", ()),
    "clock_set_to_an_impossible_time": ("call(227, 0, (ctypes.c_int64 * 2)(0, -1))", (errno.EINVAL,)),
    "quota": ("call(179, 0x800001 << 8, 0, 0, 0)", ()),
    "accounting_to_a_missing_file": ("call(163, b'/nonexistent/file')", (errno.ENOENT,)),
    "kernel_log_size": ("call(103, 10, 0, 0)", ()),
    "kernel_log_read": ("call(103, 3, ctypes.create_string_buffer(256), 256)", ()),
    "segment_table": ("call(154, 0, ctypes.create_string_buffer(64), 64)", ()),
    "segment_written": ("call(154, 1, (ctypes.c_uint32 * 4)(0, 0, 0, 0x28), 16)", ()),
    "file_access_watched": ("call(300, 0, 0)", ()),
    "folder_watched": ("call(254, call(253), OUT.encode(), 0xfff)", ()),
    "file_handle_made": ("call(303, -100, b'/', (ctypes.c_uint32 * 40)(128), (ctypes.c_int * 1)(), 0)", ()),
    "file_systems_listed": ("call(139, 3, 0, 0)", ()),
    "mounts_described": ("call(457, 0, 0, 0, 0)", (errno.EFAULT, errno.EINVAL)),
    "memory_of_a_dying_process_freed": ("call(448, -1, 0)", (errno.EBADF,)),
    "process_in_memory_replaced": ("call(322, -1, b'', 0, 0, 0x1000)", (errno.EBADF,)),
    "device_made": ("call(133, b'device', 0o20666, 0x103)", ()),
    "core_scheduling": ("call(157, 62, 0, 0, 0, 0)", (errno.EINVAL, errno.ENODEV)),
    "memory_map_rewritten": ("call(157, 35, 14, 0, 0, 0)", (errno.EINVAL, errno.EFAULT)),
    "locks_in_memory": ("call(151, 2)", ()),
    "posix_queue": ("name = b'fathom-' + MARK.encode()\ncall(240, name, 0o102, 0o600, 0)\ncall(241, name)", ()),
    "parent_by_pidfd": ("call(434, os.getppid() or 1, 0)", ()),
}

_32_BIT = """
import mmap
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
"""

_VALUES = {
    "call_by_the_32_bit_entry": (
        _32_BIT
        + """
code = b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\x48\\x98\\xc3'  # getpid has another number there
page[: len(code)] = code
value = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print('same', value == os.getpid())
""",
        "^same True$",
    ),
    "address_layout_fixed": (
        "call(135, 0x40000); print('personality', libc.personality(0xffffffff))",
        "^personality 262144$",
    ),
    "file_in_memory_executed": (
        """
descriptor = os.memfd_create('tool', 0)
os.write(descriptor, b'#!/bin/sh\\necho ran $((30 + 7))\\n')
os.execve(f'/proc/self/fd/{descriptor}', ['tool'], {})
""",
        "^ran 37$",
    ),
    "urgent_data_on_a_socket": (
        """
import socket
left, right = socket.socketpair()
right.settimeout(1)
left.send(b'xy', socket.MSG_OOB)
print('urgent', right.recv(1, socket.MSG_OOB))
""",
        "^urgent b'y'$",
    ),
    "pages_offered_for_merging": (
        "import mmap; mmap.mmap(-1, 1 << 20).madvise(12); print('off' + 'ered')",
        "^offered$",
    ),
    "key_read_back": (
        """
key = call(248, b'user', b'fathom-escape', b'kept by the kernel', 18, -2)
room = ctypes.create_string_buffer(64)
call(250, 11, key, room, 64)
print(room.value.decode())
call(250, 3, key)
""",
        "^kept by the kernel$",
    ),
    "segments_of_shared_memory": (
        """
key = call(29, 0, 4096, 0o1600)
address = call(30, key, 0, 0)
ctypes.memset(address, 65, 8)
print('shared', ctypes.string_at(address, 8).decode())
call(31, key, 0, 0)
""",
        "^shared AAAAAAAA$",
    ),
}

ATTACKS = (
    *(Attack(name, "syscalls", source, reached(*errors)) for name, (source, errors) in _CALLS.items()),
    *(Attack(name, "syscalls", source, printed(pattern)) for name, (source, pattern) in _VALUES.items()),
)
