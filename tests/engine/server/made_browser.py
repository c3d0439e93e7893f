"""A headless Chromium driven over its own debugging pipe, and a server whose answers a test writes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "fathom" / "engine" / "server" / "page.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync --disable-default-apps --disable-extensions"
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}


class Browser:
    """A running Chromium; `page` opens tabs that share nothing with one another."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        read, ours = os.pipe()
        theirs, write = os.pipe()
        # Chromium reads orders from descriptor 3 and writes to 4; ours must not lie there when it is started
        low, high = fcntl.fcntl(read, fcntl.F_DUPFD, 64), fcntl.fcntl(write, fcntl.F_DUPFD, 64)

        def connect() -> None:
            os.dup2(low, 3)
            os.dup2(high, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *QUIET.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
            preexec_fn=connect)
        for fd in (read, write, low, high):
            os.close(fd)
        self.out, self.into, self.rest, self.number = ours, theirs, b"", 0
        self.answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    def pump(self, timeout: float) -> None:
        """Takes in what Chromium has said, waiting at most `timeout` for it."""
        if not select.select([self.into], [], [], timeout)[0]:
            return
        data = os.read(self.into, 1 << 20)
        assert data, "Chromium has ended"
        *whole, self.rest = (self.rest + data).split(b"\0")
        for text in whole:
            said = json.loads(text)
            if "id" in said:
                self.answers[said["id"]] = said
            else:
                self.events.append(said)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self.number += 1
        number = self.number
        order = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self.out, json.dumps(order).encode() + b"\0")
        until = time.monotonic() + 30
        while number not in self.answers:
            assert time.monotonic() < until, f"{method}: no answer in 30 s"
            self.pump(1)
        said = self.answers.pop(number)
        assert "error" not in said, f"{method}: {said.get('error')}"
        result: dict[str, Any] = said["result"]
        return result

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):  # it may have gone already
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.into)


class Page:
    """A tab with storage of its own."""

    def __init__(self, browser: Browser, url: str, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        self.browser, self.url = browser, url
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.first = len(browser.events)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.open()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def open(self) -> None:
        """Goes to the page, or to it again."""
        self.call("Page.navigate", url=self.url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete' && typeof load === 'function'")

    def reload(self) -> None:
        self.js("window.old = true")
        self.call("Page.reload")
        self.wait("!window.old && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """The expression's value once it is true."""
        until = time.monotonic() + seconds
        while True:
            said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
            value = said["result"].get("value")
            if value not in (None, False, 0, "") and "exceptionDetails" not in said:  # an element comes as {}
                return value
            if time.monotonic() > until:
                raise AssertionError(f"never true: {expression}\n{self.text()}")
            time.sleep(0.02)

    def text(self, selector: str = "body") -> str:
        """What is to be read in the first such element."""
        return str(self.js(f"(document.querySelector({json.dumps(selector)})?.innerText ?? '(not there)')"))

    def click(self, selector: str) -> None:
        """A press of the mouse on the last such element that is visible, where it lies."""
        place = self.js(f"""(() => {{
          const node = [...document.querySelectorAll({json.dumps(selector)})].filter((n) => n.offsetParent).at(-1);
          if (!node) return null;
          node.scrollIntoView({{block: "center"}});
          const box = node.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
          const hit = document.elementFromPoint(x, y);
          return {{x, y, hit: node.contains(hit)}};
        }})()""")
        assert place, f"{selector}: nothing visible"
        assert place["hit"], f"{selector}: something lies over it"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place["x"], y=place["y"], button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        code, text = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def ask(self, text: str) -> None:
        """Writes a message and sends it with Enter."""
        self.click("#ask")
        self.type(text)
        self.press("Enter")

    def finished(self) -> None:
        self.wait("!document.querySelector('.running') && !document.body.classList.contains('busy')")

    def shot(self, path: str) -> None:
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _mine(self, *methods: str) -> Iterator[dict[str, Any]]:
        self.js("1")  # what happened before is told before
        for event in self.browser.events[self.first:]:
            if event.get("sessionId") == self.session and event["method"] in methods:
                yield event["params"]

    def complaints(self) -> list[str]:
        """Errors, warnings and whatever else the console holds."""
        return [json.dumps(said) for said in self._mine(
            "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")]

    def asked_for(self) -> set[str]:
        """Every address that the page asked for."""
        return {said["request"]["url"] for said in self._mine("Network.requestWillBeSent")}

    def close(self) -> None:
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)


class Reply:
    """What a test's script writes an answer with."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.handler, self.body, self.began = handler, body, False

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.json({"error": {"message": message, "type": "x", "param": None, "code": None}}, status, **headers)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.handler.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.handler.send_header(name.replace("_", "-"), text)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def event(self, value: Any) -> None:
        if not self.began:
            self.began = True
            self.handler.send_response(200)
            self.handler.send_header("Content-Type", "text/event-stream")
            self.handler.end_headers()
        text = value if isinstance(value, str) else json.dumps(value)
        self.handler.wfile.write(f"data: {text}\n\n".encode())
        self.handler.wfile.flush()

    def delta(self, finish: str | None = None, **delta: str) -> None:
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def end(self, finish: str = "stop", prompt: int = 12, cached: int = 0, completion: int = 5) -> None:
        self.delta(finish)
        self.event({"choices": [], "usage": {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached}}})
        self.event("[DONE]")


Script = Callable[[Reply], None]


def saying(text: str, size: int = 4, thinking: str = "", pause: float = 0.0, **end: Any) -> Script:
    """A script: `thinking` in both of its fields, then `text`, a few characters at a time."""

    def play(reply: Reply) -> None:
        reply.delta(role="assistant")
        for at in range(0, len(thinking), size):
            reply.delta(reasoning=thinking[at: at + size], reasoning_content=thinking[at: at + size])
            time.sleep(pause)
        for at in range(0, len(text), size):
            reply.delta(content=text[at: at + size])
            time.sleep(pause)
        reply.end(**end)

    return play


class Fake:
    """A server of the page whose answers to questions are scripts, one after another."""

    def __init__(self) -> None:
        self.scripts: deque[Script] = deque()
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.closed = threading.Event()  # the reader of an answer went away
        self.key: str | None = None
        self.models = ["made-10m"]
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Nothing: a test reads what was asked."""

            def do_GET(self) -> None:
                if self.path == "/":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html; charset=utf-8")
                    self.send_header("Content-Security-Policy", POLICY)
                    self.end_headers()
                    self.wfile.write(PAGE.read_bytes())
                elif self.path != "/v1/models":
                    Reply(self, {}).refuse(404, f"{self.path}: no such path")
                elif fake.allows(self.headers.get("Authorization")):
                    Reply(self, {}).json({"object": "list", "data": [{"id": m} for m in fake.models]})
                else:
                    Reply(self, {}).refuse(401, "a key is needed")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = Reply(self, body)
                if not fake.allows(self.headers.get("Authorization")):
                    return reply.refuse(401, "a key is needed")
                fake.asked.append(body)
                try:
                    (fake.scripts.popleft() if fake.scripts else saying("Fine."))(reply)
                except (BrokenPipeError, ConnectionResetError):
                    fake.closed.set()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def allows(self, key: str | None) -> bool:
        self.keys.append(key)
        return self.key is None or key == f"Bearer {self.key}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
