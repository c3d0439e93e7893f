"""What one program leaves in the interpreter for the next: unless each has a process of its own, it is poisoned."""

from .attack import Attack, after_differs

HONEST = """
import json
import math
import random
import sys
random.seed(1)
values = [math.sqrt(16.0), sorted([3, 1, 2]), len('abc'), int('5') + 252, sum(range(5)), sys.getrecursionlimit()]
print(json.dumps(values))
print(input())
"""
HONEST_SAYS = b"[4.0, [1, 2, 3], 3, 257, 10, 1000]\ngiven\n"

_POISON = {
    "builtin_replaced": "import builtins; builtins.len = lambda thing: 99",
    "print_replaced": "import builtins; builtins.print = lambda *words: None",
    "function_of_a_module_replaced": "import math; math.sqrt = lambda number: 5.0",
    "module_replaced": """
import types
module = types.ModuleType('json')
module.dumps = lambda thing: 'forged'
sys.modules['json'] = module
""",
    "module_shadowed_by_a_file": """
open('json.py', 'w').write('dumps = lambda thing: "forged"')
sys.modules.pop('json', None)
sys.path.insert(0, os.getcwd())
""",
    "finder_installed": """
import importlib.machinery
import importlib.util

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'json':
            return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.dumps = lambda thing: 'forged'

sys.modules.pop('json', None)
sys.meta_path.insert(0, Finder())
""",
    "trace_function_left": """
ours = sys._getframe()

def trace(frame, event, argument):
    if frame is not ours and frame.f_code.co_name == '<module>':
        raise KeyError('traced')

sys.settrace(trace)
""",
    "profile_function_left": """
def profile(frame, event, argument):
    if event == 'c_call' and getattr(argument, '__name__', '') == 'sqrt':
        raise KeyError('profiled')

sys.setprofile(profile)
""",
    "recursion_limit_left": "sys.setrecursionlimit(333)",
    "thread_left": """
import threading
import time

def interfere():
    while True:
        import math
        math.sqrt = lambda number: 5.0
        time.sleep(0.001)

threading.Thread(target=interfere, daemon=True).start()
time.sleep(0.05)
""",
    "timer_left": """
import signal

def handler(number, frame):
    raise KeyError('alarm')

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
try:
    while True: pass
except KeyError:
    pass
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
""",
    "number_rewritten_in_memory": "ctypes.c_int.from_address(id(5) + 24).value = 6",
    "code_of_a_function_replaced": """
import json

def dumps(thing, **settings):
    return 'forged'

json.dumps.__code__ = dumps.__code__
json.dumps.__kwdefaults__ = None
""",
    "garbage_collector_callback_left": """
import gc

def callback(phase, details):
    os.write(2, b'x')
    import math
    math.sqrt = lambda number: 5.0

gc.callbacks.append(callback)
gc.set_threshold(1)
""",
    "audit_hook_left": """
def hook(event, arguments):
    if event == 'builtins.input':
        raise KeyError('audited')

sys.addaudithook(hook)
""",
    "standard_input_replaced": "import builtins; builtins.input = lambda: 'forged'",
    "sorting_replaced": "import builtins; builtins.sorted = lambda things: list(things)",
    "process_crashed": "ctypes.string_at(0)",
    "stack_overflowed": """
sys.setrecursionlimit(10**9)

class Deep:
    def __repr__(self):
        return repr(self)

repr(Deep())
""",
    "process_ended": "os._exit(0)",
    "process_aborted": "os.abort()",
    "descriptors_closed": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); os.closerange(0, 100)",
    "standard_output_closed": "sys.stdout.close(); import io; io.StringIO = lambda *a: sys.stdout",
}

ATTACKS = (
    *(
        Attack(name, "python", source, after_differs(HONEST_SAYS), after=HONEST, naive=True)
        for name, source in _POISON.items()
    ),
)
