"""The judge that one writes first: every program in this process, reports through descriptor 3. The control of those
attacks that need a neighbour or a judge to fool. Run as `naive.py JOBS`; JOBS is a JSON list of sources."""

import io
import json
import os
import sys

report = os.fdopen(3, "w")
with open(sys.argv[1]) as file:
    jobs = json.load(file)
for source in jobs:
    sys.stdin, sys.stdout = io.StringIO("given\n"), io.StringIO()
    told = {"ended": "exited", "code": 0}
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        told["code"] = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        told = {"ended": "raised", "exception": str(error)}
    try:
        told["stdout"] = sys.stdout.getvalue()
    except ValueError:
        told["stdout"] = ""
    report.write(json.dumps(told) + "\n")
    report.flush()
