"""Reads what it must not, writes where it must not."""

from .attack import Attack, changed, strayed, told, told_secret

_READ = {
    "secret_by_its_path": "print(open(SECRET_PATH).read())",
    "secret_through_dots": "print(open('../' * 40 + SECRET_PATH).read())",
    "secret_by_symlink": "os.symlink(SECRET_PATH, 'link'); print(open('link').read())",
    "secret_by_hard_link": "os.link(SECRET_PATH, 'link'); print(open('link').read())",
    "secret_through_own_root": "print(open('/proc/self/root' + SECRET_PATH).read())",
    "secret_through_the_root_of_init": "print(open('/proc/1/root' + SECRET_PATH).read())",
    "secret_through_the_root_of_the_parent": "print(open(f'/proc/{os.getppid()}/root' + SECRET_PATH).read())",
    "secret_through_the_cwd_of_the_parent": """
os.chdir(f'/proc/{os.getppid()}/cwd')
print(open(os.path.relpath(SECRET_PATH, os.getcwd())).read())
""",
    "secret_through_the_root_of_a_victim": "print(open(f'/proc/{VICTIM}/root' + SECRET_PATH).read())",
    "secret_through_the_cwd_of_a_victim": "print(open(f'/proc/{VICTIM}/cwd/secret').read())",
    "secret_through_a_descriptor_of_a_victim": """
for name in os.listdir(f'/proc/{VICTIM}/fd'):
    if os.readlink(f'/proc/{VICTIM}/fd/{name}') == SECRET_PATH:
        print(open(f'/proc/{VICTIM}/fd/{name}').read())
""",
    "secret_by_openat2": """
descriptor = call(437, -100, SECRET_PATH.encode(), (ctypes.c_uint64 * 3)(), 24)
print(os.read(descriptor, 100))
""",
    "secret_by_file_handle": """
import struct
handle = ctypes.create_string_buffer(struct.pack('Ii', len(HANDLE), HANDLE_TYPE) + HANDLE)
for place in ('/', '/usr', '/tmp', '.', sys.prefix, sys.base_prefix, '/lib', os.__file__):
    if os.path.exists(place):
        descriptor = call(304, os.open(place, os.O_RDONLY), handle, os.O_RDONLY)
        if descriptor >= 0:
            print(os.read(descriptor, 100))
""",
    "secret_out_of_a_chroot": """
os.mkdir('cell')
os.chroot('cell')
for _ in range(40):
    os.chdir('..')
os.chroot('.')
print(open(SECRET_PATH).read())
""",
    "secret_by_an_inherited_folder": """
for descriptor in range(3, 256):
    try:
        print(os.read(os.open('secret', os.O_RDONLY, dir_fd=descriptor), 100))
    except OSError:
        pass
""",
    "secret_after_fchdir_to_an_inherited_folder": """
for descriptor in range(3, 256):
    try:
        os.fchdir(descriptor)
        print(open('secret').read())
    except OSError:
        pass
""",
    "secret_by_an_inherited_file": """
for descriptor in range(3, 256):
    try:
        print(os.pread(descriptor, 100, 0))
    except OSError:
        pass
""",
    "secret_reopened_by_its_descriptor": """
for name in os.listdir('/proc/self/fd'):
    try:
        print(open(f'/proc/self/fd/{name}').read(100) if int(name) > 2 else '')
    except (OSError, UnicodeDecodeError):
        pass
""",
    "secret_by_32_bit_open": """
import mmap
import struct
# open, read and write through the 32-bit entry of the kernel, which has its own system call numbers
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
base = ctypes.addressof(ctypes.c_char.from_buffer(page))
path, room = base + 1024, base + 2048
code = b'\\x53'
code += b'\\xb8\\x05\\0\\0\\0\\xbb' + struct.pack('I', path) + b'\\x31\\xc9\\x31\\xd2\\xcd\\x80'  # open(path, 0, 0)
code += b'\\x89\\xc3\\xb8\\x03\\0\\0\\0\\xb9' + struct.pack('I', room) + b'\\xba\\x64\\0\\0\\0\\xcd\\x80'  # read
code += b'\\x5b\\x48\\x98\\xc3'
page[: len(code)] = code
page[1024 : 1024 + len(SECRET_PATH)] = SECRET_PATH.encode()
print(ctypes.CFUNCTYPE(ctypes.c_long)(base)(), page[2048:2148])
""",
}

_FACTS = {  # what a program outside may read, besides files of ours
    "password_hashes": ("SHADOW", "print(digest(open('/etc/shadow', 'rb').read()))"),
    "user_names": ("PASSWD", "print(digest(open('/etc/passwd', 'rb').read()))"),
    "home_of_root": ("HOME_OF_ROOT", "print(digest(repr(sorted(os.listdir('/root'))).encode()))"),
    "repository": ("PROJECT", "print(digest(open(ROOT + '/pyproject.toml', 'rb').read()))"),
    "root_folder": ("TOP", "print(digest(repr(sorted(os.listdir('/'))).encode()))"),
    "names_in_tmp": ("BASE", "print(os.listdir('/tmp'), os.listdir(os.path.dirname(OUT) + '/../..'))"),
    "shared_memory_of_others": ("SHM_SECRET", "print(open(SHM).read())"),
    "kernel_command_line": ("KERNEL_COMMAND_LINE", "print(digest(open('/proc/cmdline', 'rb').read()))"),
    "kernel_symbols": ("KERNEL_SYMBOLS", "print(digest(open('/proc/kallsyms', 'rb').read(4096)))"),
    "host_mounts": ("HOST_MOUNTS", "print(digest(open('/proc/mounts', 'rb').read()))"),
}

_WRITE = {
    "file_overwritten": "open(TARGET, 'w').write(MARK)",
    "file_made": "open(OUT + '/made', 'w').write(MARK)",
    "file_reopened_for_writing": """
open(f'/proc/self/fd/{os.open(TARGET, os.O_PATH)}', 'w').write(MARK)
""",
    "file_renamed": "os.rename(TARGET, OUT + '/other')",
    "file_removed": "os.unlink(TARGET)",
    "file_opened_to_all": "os.chmod(TARGET, 0o4777)",
    "file_time_set": "os.utime(TARGET, (1, 1))",
    "file_attribute_set": "os.setxattr(TARGET, 'user.mark', b'x')",
    "file_moved_out_of_own_folder": "open('mine', 'w').write(MARK); os.rename('mine', OUT + '/mine')",
    "folder_made": "os.mkdir(OUT + '/folder')",
    "symlink_left_for_others": "os.symlink('/etc/shadow', OUT + '/link')",
    "pipe_left_for_others": "os.mkfifo(OUT + '/pipe')",
    "file_written_by_inherited_folder": """
for descriptor in range(3, 256):
    try:
        os.write(os.open(os.path.relpath(TARGET, os.path.dirname(SECRET_PATH)), os.O_RDWR, dir_fd=descriptor), b'x')
    except OSError:
        pass
""",
    "file_written_through_the_root_of_a_victim": "open(f'/proc/{VICTIM}/root' + TARGET, 'w').write(MARK)",
}

_PYTHON = {  # one file each, which the harness looks for and removes; the interpreter reads none of them
    "site_packages_written": "import numpy; place = os.path.dirname(os.path.dirname(numpy.__file__))",
    "standard_library_written": "place = os.path.dirname(os.__file__)",
    "bytecode_cache_written": "place = os.path.dirname(os.__file__) + '/__pycache__'",
    "interpreter_folder_written": "place = os.path.dirname(os.path.realpath(sys.executable))",
    "system_folder_written": "place = '/usr/local/lib'",
    "package_folder_written": "import numpy; place = os.path.dirname(numpy.__file__)",
    "etc_written": "place = '/etc'",
    "tmp_written": "place = '/tmp'",
    "var_tmp_written": "place = '/var/tmp'",
    "run_written": "place = '/run'",
}

ATTACKS = (
    *(Attack(name, "files", source, told_secret) for name, source in _READ.items()),
    *(Attack(name, "files", source, told(fact)) for name, (fact, source) in _FACTS.items()),
    *(Attack(name, "files", source, changed) for name, source in _WRITE.items()),
    *(
        Attack(name, "files", source + "\nopen(place + '/fathom-' + MARK, 'w').write(MARK)", strayed)
        for name, source in _PYTHON.items()
    ),
)
