"""Devices: the disks and terminals of the machine, and those that give power over the kernel."""

from .attack import Attack, printed, reached

_OPENED = {
    "physical_memory": "/dev/mem",
    "kernel_messages": "/dev/kmsg",
    "virtual_machines": "/dev/kvm",
    "file_systems_in_user_space": "/dev/fuse",
    "network_tunnel": "/dev/net/tun",
    "loop_control": "/dev/loop-control",
    "loop_device": "/dev/loop0",
    "console": "/dev/console",
    "first_terminal": "/dev/tty1",
    "serial_line": "/dev/ttyS0",
    "host_sockets": "/dev/vsock",
    "page_faults": "/dev/userfaultfd",
    "mapper_control": "/dev/btrfs-control",
    "hardware_random": "/dev/hwrng",
    "screen_memory": "/dev/vcs",
    "wake_latency": "/dev/cpu_dma_latency",
    "compressed_memory": "/dev/zram0",
    "automatic_mounts": "/dev/autofs",
    "new_terminal": "/dev/ptmx",
    "processor_registers": "/dev/cpu/0/msr",
    "processor_identity": "/dev/cpu/0/cpuid",
    "system_request": "/proc/sysrq-trigger",
    "core_file_handler": "/proc/sys/kernel/core_pattern",
    "module_loader": "/proc/sys/kernel/modprobe",
    "memory_of_the_kernel": "/proc/kcore",
    "kernel_settings": "/proc/sys/vm/overcommit_memory",
    "firmware_variables": "/sys/firmware/acpi/tables/DSDT",
    "power_state": "/sys/power/state",
    "control_groups": "/sys/fs/cgroup/unified/cgroup.procs",
    "trace_buffer": "/sys/kernel/tracing/trace",
}

_FLAGS = {  # opening one of these to read does something; opening to write does not
    "/proc/sysrq-trigger": "os.O_WRONLY",
    "/proc/sys/kernel/core_pattern": "os.O_WRONLY",
    "/proc/sys/kernel/modprobe": "os.O_WRONLY",
    "/proc/sys/vm/overcommit_memory": "os.O_WRONLY",
    "/sys/power/state": "os.O_WRONLY",
    "/sys/fs/cgroup/unified/cgroup.procs": "os.O_WRONLY",
}

_OTHERS = {
    "disk_read": (
        """
import glob
for name in glob.glob('/dev/vd*') + glob.glob('/dev/sd*') + glob.glob('/dev/nvme*n*'):
    print('sector', len(os.read(os.open(name, os.O_RDONLY), 512)))
""",
        printed("^sector 512$"),
    ),
    "disk_made_and_read": (
        """
for major in (253, 254, 259, 8, 7):
    os.mknod('disk', 0o60600, os.makedev(major, 0))
    try:
        print('sector', len(os.read(os.open('disk', os.O_RDONLY), 512)))
    except OSError:
        pass
    os.unlink('disk')
""",
        printed("^sector 512$"),
    ),
    "disks_listed": ("print('disks', len(os.listdir('/sys/block')) > 0)", printed("^disks True$")),
    "devices_listed": ("print('devices', len(os.listdir('/sys/bus/virtio/devices')) > 0)", printed("^devices True$")),
    "null_device_made": (
        "os.mknod('null', 0o20600, os.makedev(1, 5)); print('read', len(os.read(os.open('null', 0), 7)))",
        printed("^read 7$"),
    ),
    "keys_pressed_on_a_terminal": (
        """
import fcntl
import pty
import termios
os.setsid()
leader, follower = pty.openpty()
fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
fcntl.ioctl(follower, termios.TIOCSTI, b'k')
print('pressed', os.read(leader, 1))
""",
        printed("^pressed b'k'$"),
    ),
}

ATTACKS = (
    *(
        Attack(
            f"device_of_{name}",
            "devices",
            f"call(257, -100, {path.encode()!r}, {_FLAGS.get(path, '0x900')})",
            reached(),
        )
        for name, path in _OPENED.items()
    ),
    *(Attack(name, "devices", source, seen) for name, (source, seen) in _OTHERS.items()),
)
