"""Namespaces, mounts, identities and capabilities."""

from .attack import Attack, changed, printed, reached, told_secret

_MOUNT = """
def mount(source, place, kind, flags):
    value = libc.mount(source and source.encode(), place.encode(), kind and kind.encode(), ctypes.c_ulong(flags), None)
    print("returned", value, ctypes.get_errno() if value == -1 else 0)
    return value

libc.unshare(0x20000)  # so that nothing that follows reaches the machine's own mounts where this is allowed
mount(None, "/", None, 0x44000)
os.mkdir("place")
"""

_UNSHARE = {
    "user": 0x10000000,
    "mount": 0x20000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x80,
}

_ATTACKS = {
    "user_namespace_with_every_capability": (
        "call(272, 0x10000000)\nprint(open('/proc/self/status').read())",
        printed(r"returned 0 0[\s\S]*CapEff:\s+0+1[f]{8,}"),
    ),
    "user_namespace_by_clone": (
        "pid = call(56, 0x10000000 | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)",
        reached(),
    ),
    "user_namespace_by_clone3": (
        """
arguments = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)
pid = call(435, arguments, 64)
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
""",
        reached(),
    ),
    "pid_namespace_with_own_init": (
        """
call(272, 0x20000000)
pid = os.fork()
if pid == 0: print("I am", os.getpid(), flush=True); os._exit(0)
os.waitpid(pid, 0)
""",
        printed("^I am 1$"),
    ),
    "own_host_name": (
        "call(272, 0x04000000)\ncall(170, b'escaped', 7)\nprint(os.uname().nodename)",
        printed("^escaped$"),
    ),
    "host_name_set_to_itself": ("name = os.uname().nodename.encode()\ncall(170, name, len(name))", reached()),
    "domain_name_set_to_itself": (
        """
room = ctypes.create_string_buffer(65)
libc.getdomainname(room, 65)
call(171, room.value, len(room.value))
""",
        reached(),
    ),
    "mount_namespace_of_a_victim": ("call(308, os.open(f'/proc/{VICTIM}/ns/mnt', 0), 0x20000)", reached()),
    "network_namespace_of_a_victim": ("call(308, os.open(f'/proc/{VICTIM}/ns/net', 0), 0x40000000)", reached()),
    "namespaces_of_a_victim_by_pidfd": ("call(308, call(434, VICTIM, 0), 0x40000000)", reached()),
    "network_namespace_of_the_parent": (
        "call(308, os.open(f'/proc/{os.getppid()}/ns/net', 0), 0x40000000)",
        reached(),
    ),
    "tmpfs_mounted": (_MOUNT + "mount('none', 'place', 'tmpfs', 0)", reached()),
    "proc_mounted": (
        _MOUNT + "mount('none', 'place', 'proc', 0); print(len(os.listdir('place')) > 9)",
        printed("^True$"),
    ),
    "sysfs_mounted": (_MOUNT + "mount('none', 'place', 'sysfs', 0); print(os.listdir('place'))", printed("'kernel'")),
    "folder_bound_elsewhere": (
        _MOUNT + "mount(OUT, 'place', None, 0x1000)\nopen('place/made', 'w').write(MARK)",
        changed,
    ),
    "read_only_mount_made_writable": (
        _MOUNT
        + """
mount(OUT, "place", None, 0x1000)
mount(None, "place", None, 0x1021)
mount(None, "place", None, 0x1020)
open("place/made", "w").write(MARK)
""",
        changed,
    ),
    "read_only_root_made_writable": (
        _MOUNT
        + """
for place in ("/", "/usr", sys.prefix, sys.base_prefix):
    if mount(None, place, None, 0x1020) == 0 or mount(None, place, None, 0x20) == 0:
        print("writable", place)
""",
        printed("^writable "),
    ),
    "mask_unmounted": (
        _MOUNT
        + """
mount("none", os.path.dirname(SECRET_PATH), "tmpfs", 0)
for place in (os.path.dirname(SECRET_PATH), "/proc", "/dev", "/tmp", os.getcwd(), "/usr", "/"):
    if libc.umount2(place.encode(), 2) == 0:
        print("unmounted", place)
print(open(SECRET_PATH).read())
""",
        told_secret,
    ),
    "mount_moved": (
        _MOUNT + "mount('none', 'place', 'tmpfs', 0); os.mkdir('other'); mount('place', 'other', None, 0x2000)",
        reached(),
    ),
    "root_pivoted": (
        _MOUNT
        + "mount('none', 'place', 'tmpfs', 0); os.mkdir('place/old'); call(155, b'place', b'place/old')\n"
        + "print(os.listdir('/'))",
        printed(r"returned 0 0\n\['old'\]"),
    ),
    "root_changed": ("os.mkdir('cell'); call(161, b'cell'); print(os.listdir('/'))", printed(r"^\[\]$")),
    "file_system_opened": ("call(430, b'tmpfs', 0)", reached()),
    "mount_tree_copied": ("call(428, -100, b'/', 1)", reached()),
    "mount_picked": ("call(433, -100, b'/', 0)", reached()),
    "mount_attributes_set": (
        _MOUNT + "mount('none', 'place', 'tmpfs', 1)\ncall(442, -100, b'place', 0, (ctypes.c_uint64 * 4)(0, 1), 32)",
        reached(),
    ),
    "other_user": ("call(105, 12345); print('user', os.getuid())", printed("^user 12345$")),
    "other_group": ("call(106, 12345); print('group', os.getgid())", printed("^group 12345$")),
    "other_groups": ("os.setgroups([12345]); print('groups', os.getgroups())", printed(r"^groups \[12345\]$")),
    "other_file_user": ("call(122, 12345); print('was', libc.setfsuid(-1))", printed("^was 12345$")),
    "owner_changed": (
        "open('mine', 'w'); os.chown('mine', 12345, 12345); print(os.stat('mine').st_uid)",
        printed("^12345$"),
    ),
    "capability_to_administer": (
        """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)()
call(125, header, data)
data[0] = data[1] = data[0] | 1 << 21
call(126, header, data)
call(125, header, data)
print("administers", data[0] >> 21 & 1)
""",
        printed("^administers 1$"),
    ),
    "capability_kept_over_exec": (
        """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)()
call(125, header, data)
data[2] = data[1]
call(126, header, data)
call(157, 47, 2, 21, 0, 0)
print("ambient", libc.prctl(47, 1, 21, 0, 0))
""",
        printed("^ambient 1$"),
    ),
    "secure_bits_set": ("call(157, 28, 0xf, 0, 0, 0)", reached()),
    "programs_with_more_rights": ("print('no_new_privs', libc.prctl(39, 0, 0, 0, 0))", printed("^no_new_privs 0$")),
}

ATTACKS = (
    *(
        Attack(f"{name}_namespace_unshared", "namespaces", f"call(272, {flag})", reached())
        for name, flag in _UNSHARE.items()
    ),
    *(Attack(name, "namespaces", source, seen) for name, (source, seen) in _ATTACKS.items()),
)
