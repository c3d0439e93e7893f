"""The network: the harness listens on TCP, UDP and Unix sockets, and each attack tries to be heard."""

import errno

from .attack import Attack, heard, printed, reached

_HEARD = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', TCP)).sendall(MARK.encode())",
    "tcp_by_asyncio": """
import asyncio

async def main():
    _, writer = await asyncio.open_connection('127.0.0.1', TCP)
    writer.write(MARK.encode())
    await writer.drain()

asyncio.run(main())
""",
    "tcp_with_fast_open": """
import socket
socket.socket().sendto(MARK.encode(), 0x20000000, ('127.0.0.1', TCP))
""",
    "tcp_from_a_thread": """
import socket
import threading
thread = threading.Thread(target=lambda: socket.create_connection(('127.0.0.1', TCP)).sendall(MARK.encode()))
thread.start()
thread.join()
""",
    "http": "import urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{TCP}/{MARK}', timeout=0.5)",
    "multipath_tcp": """
import socket
connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
connection.connect(('127.0.0.1', TCP))
connection.sendall(MARK.encode())
""",
    "tcp_by_32_bit_calls": """
import mmap
import struct
# socketcall(SYS_SOCKET), socketcall(SYS_CONNECT) and write through the kernel's 32-bit entry
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
base = ctypes.addressof(ctypes.c_char.from_buffer(page))

def old(number, first, second=0, third=0):
    code = b'\\x53\\xb8' + struct.pack('I', number) + b'\\xbb' + struct.pack('I', first & 0xffffffff)
    code += b'\\xb9' + struct.pack('I', second) + b'\\xba' + struct.pack('I', third) + b'\\xcd\\x80\\x5b\\x48\\x98\\xc3'
    page[: len(code)] = code
    return ctypes.CFUNCTYPE(ctypes.c_long)(base)()

page[1024:1036] = struct.pack('III', 2, 1, 0)
descriptor = old(102, 1, base + 1024)
page[1100:1116] = struct.pack('<H', 2) + struct.pack('>H', TCP) + bytes([127, 0, 0, 1]) + bytes(8)
page[1024:1036] = struct.pack('III', descriptor, base + 1100, 16)
print(descriptor, old(102, 3, base + 1024))
page[2048 : 2048 + len(MARK)] = MARK.encode()
old(4, descriptor, base + 2048, len(MARK))
""",
    "udp": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(MARK.encode(), ('127.0.0.1', UDP))",
    "udp_shaped_as_a_name_query": """
import socket
name = bytes([len(MARK)]) + MARK.encode() + b'\\x04test\\0'
query = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0' + name + b'\\0\\x01\\0\\x01'
socket.socket(type=socket.SOCK_DGRAM).sendto(query, ('127.0.0.1', UDP))
""",
    "unix_socket": """
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect(UNIX)
connection.sendall(MARK.encode())
""",
    "unix_socket_through_a_symlink": """
import socket
os.symlink(UNIX, 'link')
connection = socket.socket(socket.AF_UNIX)
connection.connect('link')
connection.sendall(MARK.encode())
""",
    "unix_datagram": """
import socket
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(MARK.encode(), UNIX_DATAGRAM)
""",
    "abstract_unix_socket": """
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect('\\0' + ABSTRACT)
connection.sendall(MARK.encode())
""",
    "inherited_socket": """
for descriptor in range(4, 256):
    try:
        os.write(descriptor, MARK.encode())
    except OSError:
        pass
""",
    "connection_by_multiprocessing": """
import multiprocessing.connection
multiprocessing.connection.Client(UNIX, 'AF_UNIX').send_bytes(MARK.encode())
""",
}

_SERVERS = {
    "server_on_a_port": """
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
client.sendall(b'through ' + b'lo')
print(server.accept()[0].recv(100).decode())
""",
    "server_on_an_abstract_name": """
import socket
server = socket.socket(socket.AF_UNIX)
server.bind('\\0fathom-' + MARK)
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect('\\0fathom-' + MARK)
client.sendall(b'through ' + b'lo')
print(server.accept()[0].recv(100).decode())
""",
    "server_on_udp": """
import socket
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 0))
server.sendto(b'through ' + b'lo', server.getsockname())
print(server.recv(100).decode())
""",
}

_CALLS = {
    "raw_socket": "call(41, 2, 3, 1)",
    "packet_socket": "call(41, 17, 3, 0x300)",
    "routing_socket": "call(41, 16, 3, 0)",
    "kernel_event_socket": "call(41, 16, 3, 15)",
    "virtual_machine_socket": "call(41, 40, 1, 0)",
    "kernel_crypto_socket": "call(41, 38, 5, 0)",
    "express_data_path_socket": "call(41, 44, 3, 0)",
    "interfaces_listed": "import socket; print('returned', len(socket.if_nameindex()) or -1, 0)",
}

ATTACKS = (
    *(Attack(name, "network", source, heard) for name, source in _HEARD.items()),
    *(Attack(name, "network", source, printed("^through lo$")) for name, source in _SERVERS.items()),
    *(Attack(name, "network", source, reached(errno.EINVAL)) for name, source in _CALLS.items()),
)
