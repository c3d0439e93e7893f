"""The chat page in a browser, against a server whose answers are written here."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_browser import CHROMIUM, PAGE, Browser, Fake, Page, Reply, saying

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">\n\n<script>document.title='owned'</script>\n\n"
    "[a](javascript:document.title='owned') ![p](http://example.invalid/p.png) **<b onclick=alert(1)>x</b>**\n\n"
    "| <i>a</i> | b |\n|---|---|\n| <svg onload=alert(1)> | `<u>` |\n\n```<script>\n</code></pre><img src=y>\n```\n"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install it to check the chat page in a browser")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


@pytest.fixture
def visit(browser: Browser, fake: Fake) -> Iterator[Callable[..., Page]]:
    """Opens the page; afterwards it must have asked this server alone, and the console be empty but for refusals."""
    pages: list[Page] = []

    def open_page(**how: Any) -> Page:
        pages.append(Page(browser, fake.url, **how))
        pages[-1].wait("models.length > 0 || !document.querySelector('#key').hidden")
        return pages[-1]

    yield open_page
    for page in pages:
        assert all(url.startswith(fake.url) for url in page.asked_for()), page.asked_for()
        said = [text for text in page.complaints() if "the server responded with a status of 4" not in text
                and "ERR_INCOMPLETE_CHUNKED_ENCODING" not in text]
        assert said == []
        page.close()


def contents(asked: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in asked["messages"]]


def until(event: threading.Event, what: str) -> None:
    assert event.wait(20), what


def test_an_answer_streams_with_times_and_counts(visit: Callable[..., Page], fake: Fake) -> None:
    go, half = threading.Event(), "The first half, "

    def halves(reply: Reply) -> None:
        reply.delta(role="assistant")
        reply.delta(content=half)
        reply.delta(content="**bold**")
        until(go, "the test never went on")
        reply.delta(content=" and the rest.")
        reply.end(prompt=1200, cached=1184, completion=31)

    fake.scripts.append(halves)
    page = visit()
    assert page.text("#model") == "made-10m"
    page.ask("Go on")
    page.wait("document.querySelector('.body')?.textContent === 'The first half, bold'")
    page.wait("document.querySelector('.running .meta').textContent.includes('≈ 2 tokens')")
    assert page.js("document.querySelector('#send').getAttribute('aria-label')") == "Stop"
    assert page.js("document.querySelector('.assistant').getAttribute('aria-busy')") == "true"
    go.set()
    page.finished()
    assert page.text(".body") == "The first half, bold and the rest."
    meta = page.text(".meta")
    assert "31 tokens" in meta
    assert "≈" not in meta
    assert "prompt 1,200, 1,184 cached" in meta
    # 30 tokens after the first, in the time from the first to the last
    told = re.search(r"([\d,.]+) tokens/s.*first after ([\d.]+) s", meta, re.DOTALL)
    assert told
    assert float(told[1].replace(",", "")) == pytest.approx(30 / page.js("turns[1].span"), abs=0.5)
    assert float(told[2]) == pytest.approx(page.js("turns[1].first"), abs=0.05)
    assert page.text("#status") == "Answer: The first half, **bold** and the rest."
    asked = fake.asked[0]
    assert asked["model"] == "made-10m"
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert contents(asked) == [("user", "Go on")]
    assert f"seed {asked['seed']}" in meta


def test_thinking_is_folded_and_opens(visit: Callable[..., Page], fake: Fake) -> None:
    thought, answered = threading.Event(), threading.Event()

    def play(reply: Reply) -> None:
        reply.delta(reasoning="Hm <i>", reasoning_content="Hm <i>")  # the same, under both of its names
        until(thought, "thinking was not seen")
        reply.delta(content="So.")
        until(answered, "the answer was not seen")
        reply.delta(reasoning=" and still", reasoning_content=" and still")
        reply.end()

    fake.scripts.append(play)
    page = visit()
    page.ask("?")
    page.wait("document.querySelector('.thinking.live .text')?.textContent === 'Hm <i>'")
    page.wait("document.querySelector('.thinking summary').textContent.startsWith('Thinking… 1 s')")
    thought.set()
    page.wait("document.querySelector('.body').textContent === 'So.'")
    assert page.js("document.querySelector('.thinking').open") is False
    page.click(".thinking summary")
    page.wait("document.querySelector('.thinking').open")
    answered.set()
    page.finished()
    assert page.js("document.querySelector('.thinking').open") is True, "the reader's own choice is kept"
    assert page.text(".thinking .text") == "Hm <i> and still"
    assert page.text(".thinking summary").startswith("Thought for 1.")
    thought.clear()
    fake.scripts.append(play)
    page.click(".again")
    page.wait("document.querySelector('.thinking.live')?.open")
    for state in ("false", "true"):  # pressed before the answer begins: nothing folds by itself any more
        page.click(".thinking summary")
        page.wait(f"document.querySelector('.thinking').open === {state}")
    thought.set()
    page.finished()
    assert page.js("document.querySelector('.thinking').open") is True
    page.ask("And?")
    page.finished()
    assert contents(fake.asked[2]) == [("user", "?"), ("assistant", "So."), ("user", "And?")], "thoughts stay here"


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop_keeps_the_text_and_leaves_the_server(visit: Callable[..., Page], fake: Fake, by: str) -> None:
    def endless(reply: Reply) -> None:
        for i in range(5000):
            reply.delta(content=f"{i} ")
            time.sleep(0.01)

    fake.scripts.append(endless)
    page = visit()
    page.ask("Count")
    page.wait("document.querySelector('.body')?.textContent.includes('5 ')")
    page.press("Escape") if by == "Escape" else page.click("#send")
    until(fake.closed, "the server was never left")
    page.finished()
    assert page.text(".body").startswith("0 1 2 3 4 5")
    assert page.text(".note") == "stopped"
    kept = page.js("turns[1].text")
    page.ask("Go on")
    page.finished()
    assert contents(fake.asked[1]) == [("user", "Count"), ("assistant", kept), ("user", "Go on")]


def test_what_a_model_writes_stays_text(visit: Callable[..., Page], fake: Fake) -> None:
    fake.scripts.append(saying(HOSTILE, size=7, thinking="<img src=x onerror=alert(1)>"))
    page = visit()
    page.ask(HOSTILE)
    page.finished()
    assert page.js("document.title") == "made-10m · Fathom"
    assert page.js("document.querySelectorAll('#turns :is(img, script, b, i, u, svg, iframe)').length") == 0
    attributes = page.js("[...document.querySelectorAll('#turns *')].flatMap((n) => n.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on")]
    assert page.js("[...document.querySelectorAll('#turns a')].map((a) => a.href)") == ["http://example.invalid/p.png"]
    body = page.text(".body")
    for part in ("<img src=x onerror=\"document.title='owned'\">", "<script>document.title='owned'</script>",
                 "[a](javascript:document.title='owned')", "<svg onload=alert(1)>", "</code></pre><img src=y>"):
        assert part in body
    assert page.text(".bubble") == HOSTILE.strip()


def test_the_policy_would_catch_what_slipped_through(browser: Browser, fake: Fake) -> None:
    page = Page(browser, fake.url)
    page.js("document.body.insertAdjacentHTML('beforeend', \"<img src='http://example.invalid/x.png'>\")")
    page.js("fetch('http://example.invalid/').catch(() => 1)")
    said = " ".join(page.complaints())
    assert "img-src" in said
    assert "connect-src" in said
    page.close()


def test_a_key_is_asked_for_kept_in_the_tab_and_used(visit: Callable[..., Page], fake: Fake) -> None:
    page = visit()
    assert page.js("document.querySelector('#key').hidden") is True
    fake.key = "right-1"
    page.ask("Hello?")
    page.wait("!document.querySelector('#key').hidden")
    assert page.text(".note.error") == "a key is needed (401)"
    page.type("wrong-1")  # the field has the focus
    page.press("Enter")
    page.wait("document.querySelector('#key label').textContent.includes('refused')")
    page.type("right-1")
    page.press("Enter")
    page.wait("document.querySelector('.body')?.textContent === 'Fine.'")
    page.finished()
    assert contents(fake.asked[-1]) == [("user", "Hello?")]
    assert fake.keys[-1] == "Bearer right-1"
    assert page.js("document.querySelectorAll('.turn').length") == 2
    assert page.js("localStorage.length + document.cookie.length") == 0
    page.reload()
    page.wait("models.length > 0")
    assert page.js("document.querySelector('#key').hidden") is True


def test_a_busy_server_is_waited_for(visit: Callable[..., Page], fake: Fake) -> None:
    fake.scripts += [lambda reply: reply.refuse(429, "too many waiting", Retry_After="2"),
                     lambda reply: reply.refuse(429, "too many waiting", Retry_After="0"), saying("Now.")]
    page = visit()
    began = time.monotonic()
    page.ask("Hello?")
    page.wait("document.querySelector('.meta')?.textContent.includes('the server is busy: again in 2 s (try 2 of 6)')")
    page.finished()
    assert page.text(".body") == "Now."
    assert time.monotonic() - began >= 2
    assert len(fake.asked) == 3
    fake.scripts.append(lambda reply: reply.refuse(429, "come back tomorrow", Retry_After="86400"))
    page.ask("Again?")
    page.finished()
    assert page.text(".turn:last-child .note") == "come back tomorrow (429)"
    fake.scripts.append(lambda reply: reply.refuse(429, "too many waiting", Retry_After="60"))
    page.click(".again")
    page.wait("document.querySelector('.turn:last-child .meta').textContent.includes('again in')")
    page.press("Escape")
    page.finished()
    assert page.text(".turn:last-child .note") == "stopped"


def test_errors_stand_in_the_chat_and_can_be_tried_again(visit: Callable[..., Page], fake: Fake) -> None:
    def breaks(reply: Reply) -> None:
        reply.delta(content="Half ")

    def dies(reply: Reply) -> None:
        reply.delta(content="Some ")
        reply.event({"error": {"message": "the engine ended", "code": 500}})

    long = "prompt: 5000 tokens, the model holds 4096; shorten it"
    fake.scripts += [lambda reply: reply.refuse(400, long), breaks, dies, saying("Whole.", finish="length")]
    page = visit()
    page.ask("Hello?")
    page.finished()
    assert page.text(".note.error") == f"{long} (400)"
    for note, text in (("The connection broke before the answer was whole.", "Half"), ("the engine ended", "Some")):
        assert page.text(".again") == "Try again"
        page.click(".again")
        page.finished()
        assert page.text(".note.error") == note
        assert page.text(".body") == text
    page.click(".again")
    page.finished()
    assert page.text(".body") == "Whole."
    assert "cut off" in page.text(".note:not(.error)")
    assert [contents(asked) for asked in fake.asked] == [[("user", "Hello?")]] * 4
    fake.scripts.append(lambda reply: reply.refuse(400, "no"))
    page.ask("Unanswered")
    page.finished()
    page.ask("Next")
    page.finished()
    assert contents(fake.asked[-1]) == [("user", "Hello?"), ("assistant", "Whole."), ("user", "Next")]
    assert "not sent along" in page.text(".assistant.left-out .note")


def test_edit_and_regenerate_send_the_right_messages(visit: Callable[..., Page], fake: Fake) -> None:
    fake.scripts += [saying("One."), saying("Two."), saying("Two, again."), saying("Three.")]
    page = visit()
    page.ask("A")
    page.finished()
    page.click("#ask")
    page.type("B")
    page.press("Enter", shift=True)
    page.type("b")
    page.press("Enter")
    page.finished()
    page.click(".again")
    page.finished()
    assert page.text(".turn:last-child .body") == "Two, again."
    assert fake.asked[1]["messages"] == fake.asked[2]["messages"]
    assert fake.asked[1]["seed"] != fake.asked[2]["seed"], "a random seed is another one each time"
    page.click(".edit button")
    page.press("Escape")
    assert page.js("document.querySelectorAll('.editor').length") == 0
    page.click(".edit button")
    assert page.js("document.querySelector('.editor textarea').value") == "B\nb"
    page.js("document.activeElement.select()")
    page.type("C")
    page.press("Enter")
    page.finished()
    before = [("user", "A"), ("assistant", "One.")]
    assert contents(fake.asked[2]) == [*before, ("user", "B\nb")]
    assert contents(fake.asked[3]) == [*before, ("user", "C")]
    assert page.js("turns.map((turn) => turn.text)") == ["A", "One.", "C", "Three."]
    assert page.js("[...document.querySelectorAll('.bubble, .body')].map((n) => n.textContent)") == [
        "A", "One.", "C", "Three."]


def test_settings_go_along_and_wrong_ones_do_not(visit: Callable[..., Page], fake: Fake) -> None:
    page = visit()
    page.click("#tune")
    typed = {"temperature": "0.6", "top_p": "1.5", "max_tokens": "64", "seed": "7", "system": "Be"}
    for name, value in typed.items():
        page.js(f"document.querySelector('#{name}').focus()")
        page.type(value)
    page.ask("Hello?")
    page.finished()
    assert page.text("#wrong").startswith("Top-p: ")
    assert page.text("#wrong").endswith("It is not sent.")
    asked = fake.asked[0]
    assert {name: asked.get(name) for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.6, "top_p": None, "max_tokens": 64, "seed": 7}
    assert contents(asked) == [("system", "Be"), ("user", "Hello?")]
    page.reload()
    assert page.js("document.querySelector('#max_tokens').value") == "64"


def test_a_reload_keeps_the_chat_and_a_new_chat_can_be_taken_back(visit: Callable[..., Page], fake: Fake) -> None:
    def half(reply: Reply) -> None:
        reply.delta(content="Half of")
        time.sleep(0.2)
        for _ in range(1000):
            reply.event({"choices": []})
            time.sleep(0.01)

    fake.scripts += [saying("# One\n\n- *a*\n- b\n", thinking="Hm."), half]
    page = visit()
    page.ask("A")
    page.finished()
    html = page.js("document.querySelector('.body').innerHTML")
    page.ask("B")
    page.wait("document.querySelectorAll('.body')[1]?.textContent === 'Half of'")
    page.click("#ask")
    page.type("a draft")
    page.reload()
    until(fake.closed, "the server was never left")
    assert page.js("document.querySelector('.body').innerHTML") == html
    assert page.text(".thinking summary") == "Thought for less than a second"
    assert page.text(".turn:last-child .body") == "Half of"
    assert page.text(".turn:last-child .note") == "stopped"
    assert page.js("document.querySelector('#ask').value") == "a draft"
    page.click("#new")
    assert page.js("document.querySelectorAll('.turn').length") == 0
    assert page.text("#empty").startswith("Ask away.")
    page.click("#notice button")
    assert page.js("document.querySelectorAll('.turn').length") == 4
    page.click("#new")
    page.reload()
    assert page.js("document.querySelectorAll('.turn').length") == 0


LONG = "word " * 120 + "\n\n| a | b | c |\n|---|---|---|\n|" + " x" * 40 + "| " + "y" * 90 + " | z |\n\n```\n"
LONG += "c" * 300 + "\n```\n\n" + "unbroken" * 60 + "\n\n1. $" + "x+" * 100 + "$\n\n# " + "h" * 80
LONG += "\n\n`" + "k" * 99 + "`"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_does_not_scroll_sideways(visit: Callable[..., Page], fake: Fake, dark: bool) -> None:
    fake.models = ["a-model-with-quite-a-long-name-instruct-2024-07", "another"]
    fake.scripts += [saying(LONG, size=50, thinking="t" * 200), lambda reply: reply.refuse(400, "e" * 200)]
    page = visit(width=360, height=700, dark=dark)
    page.ask("q" * 120)
    page.finished()
    page.ask("again")
    page.finished()
    page.click("#tune")
    page.js("want(null); notice('n'.repeat(90), 'Close')")
    page.click(".edit button")
    wide = page.js("[...document.querySelectorAll('.wrap, .turn, #composer, #settings, .dock')]"
                   ".filter((n) => n.getBoundingClientRect().right > innerWidth + 0.5).map((n) => n.className + n.id)")
    assert wide == []
    assert page.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth") is True


CONTRAST = """(() => {
  const channel = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => { const [r, g, b] = rgb.map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const under = (n) => { for (; n; n = n.parentElement) {
    const c = parse(getComputedStyle(n).backgroundColor);
    if (c[3] === undefined || c[3] > 0.99) return c.slice(0, 3); } };
  const poor = [];
  for (const n of document.querySelectorAll("body *")) {
    const text = [...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!text || !n.offsetParent || n.closest(".left-out")) continue;
    const [a, b] = [light(parse(getComputedStyle(n).color).slice(0, 3)), light(under(n))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${n.tagName}.${n.className} ${ratio.toFixed(2)}: ${n.textContent.slice(0, 30)}`);
  }
  return poor;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_both_colour_schemes_can_be_read(visit: Callable[..., Page], fake: Fake, dark: bool) -> None:
    fake.scripts += [saying(LONG + "\n\n> quoted [link](https://example.org)\n", size=50, thinking="Hm."),
                     lambda reply: reply.refuse(400, "no")]
    page = visit(dark=dark)
    page.ask("A")
    page.finished()
    page.ask("B")
    page.finished()
    page.click("#tune")
    page.js("want(null); notice('note', 'Close')")
    back = page.js("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(15, 21, 27)" if dark else "rgb(247, 245, 240)")
    assert page.js(CONTRAST) == []
    named = "[...document.querySelectorAll('input, textarea, select, button')].filter((n) => "
    named += "!n.labels?.length && !n.getAttribute('aria-label') && !n.textContent.trim()).map((n) => n.outerHTML)"
    assert page.js(named) == []


def test_the_page_follows_until_the_reader_scrolls_up(visit: Callable[..., Page], fake: Fake) -> None:
    more, end = threading.Event(), threading.Event()

    def play(reply: Reply) -> None:
        reply.delta(content="line\n\n" * 60)
        until(more, "the first part was not seen")
        reply.delta(content="line\n\n" * 60)
        until(end, "the second part was not seen")
        reply.end()

    fake.scripts.append(play)
    page = visit()
    page.ask("A")
    page.wait("document.querySelectorAll('.body p').length === 60")
    page.wait("distance() < 2")
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=500, y=300, deltaX=0, deltaY=-600)
    page.wait("!pinned && distance() > 300")
    place = page.wait("new Promise((done) => setTimeout(() => done(scrollY), 300))")
    more.set()
    page.wait("document.querySelectorAll('.body p').length === 120")
    assert page.js("scrollY") == place
    page.click("#down")
    page.wait("distance() < 2")
    end.set()
    page.finished()
    assert page.js("distance() < 2") is True


def test_a_code_block_is_copied(visit: Callable[..., Page], fake: Fake) -> None:
    fake.scripts.append(saying("Take this:\n\n```python\na = 1\n\nb = '<b>'\n```\n\nDone."))
    page = visit()
    page.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.ask("A")
    page.finished()
    page.click(".code button")
    assert page.wait("window.copied") == "a = 1\n\nb = '<b>'"
    page.click(".assistant .row button:not(.again)")
    page.wait("window.copied.startsWith('Take this:')")


DRAWN = [
    ("a *b* **c** ***d*** ~~e~~ _f_",
     "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <s>e</s> <em>f</em></p>"),
    ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
    ("`a*b*` \\*c\\* ``d`e``", "<p><code>a*b*</code> *c* <code>d`e</code></p>"),
    ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    ("# A #\n## B", "<h3>A</h3><h4>B</h4>"),
    ("- a\n- b\n  - c\n\n  d\n- e", "<ul><li>a</li><li>b<ul><li>c</li></ul><p>d</p></li><li>e</li></ul>"),
    ("3. a\n4. b\n\ntext", '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>'),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("$a_1 * b_2 * c$ costs $5 or $6", '<p><span class="math">a_1 * b_2 * c</span> costs $5 or $6</p>'),
    ("\\(x_1\\) and \\[y\\]", '<p><span class="math">x_1</span> and <span class="math">y</span></p>'),
    ("$$\n\\frac{a}{b}\n$$\nend", '<div class="math">\\frac{a}{b}</div><p>end</p>'),
    ("| a | b |\n|:-:|--:|\n| 1 | `x\\|y` |", '<div class="scroll"><table><thead><tr><th class="center">a</th>'
     '<th class="right">b</th></tr></thead><tbody><tr><td class="center">1</td><td class="right"><code>x|y</code></td>'
     "</tr></tbody></table></div>"),
    ("see https://a.bc/d_e_(f). [x](/y)", '<p>see <a href="https://a.bc/d_e_(f)" title="https://a.bc/d_e_(f)" '
     'target="_blank" rel="noopener noreferrer nofollow">https://a.bc/d_e_(f)</a>. [x](/y)</p>'),
    ("**open and `open", "<p>**open and `open</p>"),
]
DRAW = "(text, size) => { const root = document.createElement('div'), made = new Markdown(root); " \
       "for (let i = 0; i < text.length; i += size) made.append(text.slice(i, i + size)); return root.innerHTML; }"


def test_markdown_is_drawn(visit: Callable[..., Page]) -> None:
    page = visit()
    for text, html in DRAWN:
        assert page.js(f"({DRAW})({json.dumps(text)}, 1000)") == html


@pytest.mark.property
def test_markdown_is_the_same_however_it_comes(visit: Callable[..., Page]) -> None:
    pieces = ["a", " ", "\n", "\n\n", "- ", "1. ", "  ", "```\n", "`", "*", "**", "_", "~~", "# ", "> ", "| a |",
              "|---|", "$", "$$", "\\(", "\\)", "\\", "[x](", "http://a.b", ")", "---\n", "b c", "\0",
              "\x01", "😀", "\r\n", "\n-b", "\n#b", "\n1.b", "\n~~~", "\n``b"]
    rng = random.Random(6)
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 40))) for _ in range(1500)]
    page = visit()
    differ = page.js(f"(() => {{ const draw = {DRAW}; return {json.dumps(texts)}.filter((text) => "
                     "draw(text, 1) !== draw(text, 1e9) || draw(text, 3) !== draw(text, 1e9)); })()")
    assert differ == []


def test_no_text_makes_drawing_endless(visit: Callable[..., Page]) -> None:
    units = ["*", "**a ", "**a**", "_a_", "`a", "``a`", "[", "[a](", "![a](b", "$", "$a ", "\\(", "\\[a", "~~a ", "> ",
             "- ", "#", "# ", " ", "|", "|a", "-|", "http://", "http://(", ")", "http://a)", "\\", "\\|", "```", "1. ",
             "\t", "$$", "***a", "*a **b ", "_a", "\n", "> - ", "- \n", "a|b\n", "|-", "\x01"]
    page = visit()
    for unit in units:
        text = unit * (60_000 // len(unit)) + "x"
        # a quadratic pattern would take minutes: the command would get no answer
        drawn = f"(({DRAW})({json.dumps(text)}, 1e9) + ({DRAW})({json.dumps('http://' + text)}, 1e9)).length > 0"
        assert page.js(drawn) is True, unit


def test_a_long_answer_is_drawn_once(visit: Callable[..., Page], fake: Fake) -> None:
    code = "".join(f"line {i} of the code\n" for i in range(3000))
    text = "First.\n\n" + "".join(f"- item {i}\n" for i in range(1500)) + f"\n```\n{code}```\n\nLast."

    def play(reply: Reply) -> None:  # some 20,000 events, in bursts as they come off a busy line
        for at in range(0, len(text), 4):
            reply.delta(content=text[at: at + 4])
        reply.end(completion=20_000)

    fake.scripts.append(play)
    page = visit()
    page.js("window.made = 0; const old = document.createElement.bind(document); "
            "document.createElement = (tag) => { if (tag === 'li') made++; return old(tag); }; window.kept = 0; "
            "const set = Storage.prototype.setItem; "
            "Storage.prototype.setItem = function (...what) { kept++; set.apply(this, what); }")
    began = time.monotonic()
    page.ask("A")
    first = "document.querySelector('.body p')"
    page.wait(f"{first} && (window.first = {first}).textContent === 'First.' && "
              "document.querySelectorAll('.body li').length > 3")
    page.wait("!running", 60)
    assert page.js("document.querySelectorAll('.body li').length") == 1500
    assert page.js(f"window.first === {first}") is True, "what is done is not drawn again"
    drawn = page.js("window.made")
    assert drawn < 1500 + 3 * 1500, f"{drawn} list items made for 1,500"
    assert page.js("window.kept") < 5 + (time.monotonic() - began), "the chat is kept once a second, not once a token"
    assert page.js("document.querySelector('.code code').textContent") == code.rstrip("\n")


def test_code_grows_in_its_text(visit: Callable[..., Page]) -> None:
    page = visit()
    same = page.js("""(() => {
      const root = document.createElement("div"), made = new Markdown(root);
      made.append("a\\n\\n```js\\n1");
      const code = root.querySelector("code"), text = code.firstChild;
      for (const more of ["2", "\\n", "3\\n", "``", "4"]) made.append(more);
      return root.querySelector("code") === code && code.firstChild === text && text.data;
    })()""")
    assert same == "12\n3\n``4"


def test_the_real_server_and_the_page_understand_each_other(browser: Browser) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from fake import FakeService, running

    service = FakeService(script="<think>\nHm <b>.\n</think>\n\nIt is **42**, naïve café 日本.", delay=0.01)
    with running(service, api_key="k-1") as server:
        page = Page(browser, f"{server.url}/")
        page.wait("!document.querySelector('#key').hidden")
        page.type("k-1")
        page.press("Enter")
        page.wait("models.length === 1")
        page.ask("What is 2+3?")
        page.finished()
        assert page.js("document.querySelector('.thinking .text').textContent") == "Hm <b>."
        assert page.text(".body") == "It is 42, naïve café 日本."
        stream = service.streams[0]
        assert f"prompt {len(stream.prompt)}, {len(stream.prompt) // 2} cached" in page.text(".meta")
        assert f"seed {stream.sampling.seed}" in page.text(".meta")
        service.script = lambda i: "again and " * 100
        page.ask("Go on")
        page.wait("document.querySelectorAll('.body')[1]?.textContent.includes('again')")
        page.press("Escape")
        page.finished()
        until_cancelled = time.monotonic() + 10
        while service.streams[1].cancelled_at is None:
            assert time.monotonic() < until_cancelled, "the engine works on for nobody"
            time.sleep(0.01)
        service.busy = True
        page.ask("And now?")
        page.wait("document.querySelector('.turn:last-child .meta').textContent.includes('again in 3 s')")
        service.busy = False
        service.script = lambda i: "Now."
        page.finished()
        assert page.text(".turn:last-child .body") == "Now."
        said = [text for text in page.complaints() if "status of 4" not in text and "Autofocus" not in text]
        assert said == [], "the server's own policy lets the page be"
        page.close()


def test_the_file_is_whole() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "@import" not in text
    assert "url(" not in text


def test_colours_are_the_reports() -> None:
    style = (Path(PAGE).parents[2] / "report" / "style.css").read_text(encoding="utf-8")
    ours = PAGE.read_text(encoding="utf-8")
    for name in ("paper", "card", "ink", "soft", "line", "accent", "warm"):
        found = re.compile(rf"--{name}: (#\w+)")
        assert found.findall(ours) == found.findall(style)[:2], name  # light and dark; a third is for paper
