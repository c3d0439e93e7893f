"""The report as one HTML file that asks the network for nothing.

Text of models and of problems is untrusted. It travels as JSON in a script element with `<`, `>` and `&` written as
escapes, so that no completion can end the element, and the page puts it on screen with textContent only. A content
security policy allows exactly the page's own script and style (by hash): anything else would not run even if it got in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from fathom.core.disk import write_atomic
from fathom.report.page import page
from fathom.report.read import read_run

SCRIPTS = ("charts.js", "completions.js", "page.js")


def write_report(run_dir: Path) -> Path:
    """Writes report.html into a recipe run or stage directory and returns its path.

    Raises UsageError where the directory holds no run, FathomError naming a file that is damaged.
    """
    run = read_run(Path(run_dir))
    path = run.dir / "report.html"
    write_atomic(path, html(page(run)))
    return path


def html(content: dict[str, Any]) -> str:
    """The whole file for a page's content (`page.page`)."""
    style = _asset("style.css")
    script = '"use strict";\n' + "\n".join(map(_asset, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": _escape(f"{content['name']} · Fathom"),
        "style": style,
        "data": embed(content),
        "script": script,
    }
    # One pass: what is filled in is never read as a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("template.html"))


def embed(value: Any) -> str:
    """JSON that may stand inside a script element whatever texts it holds. NaN and infinities raise ValueError."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate is written as its escape


def _asset(name: str) -> str:
    return (files("fathom.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
