r"""One notation for what answers write in many: LaTeX dressing off, Unicode signs as commands, thousands joined."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "√": "\\sqrt ",
        "π": "\\pi ", "∞": "\\infty ", "≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq ", "∪": "\\cup ", "∈": "\\in ",
        "±": "\\pm ", "∓": "\\mp ", "≈": "\\approx ", "°": "^\\circ ", "²": "^2", "³": "^3", "½": "\\frac{1}{2}",
        "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "∖": "\\setminus ",
        "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "λ": "\\lambda ", "φ": "\\varphi ", "，": ",", "；": ";",
        "：": ":", "（": "(", "）": ")", "＜": "<", "＞": ">", "＝": "=", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "“": '"', "”": '"', "’": "'", "∀": "\\forall ", "∃": "\\exists ", "∩": "\\cap ",
        # What a JSON string makes of \frac, \boxed and the like whose backslash was not doubled.
        "\x0c": "\\f", "\x08": "\\b",
    }
)  # fmt: skip
_RAISED = re.compile("[⁰¹²³⁴-⁹⁻ⁿ]+")
_LOWERED = re.compile("[₀-₉]+")
_FRACTION = re.compile("[¼½¾⅐-⅞]")
_FULL_WIDTH = re.compile("[０-９Ａ-Ｚａ-ｚ．％＋－]+")
_RADICAL = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])")
_PYTHON_POWER = re.compile(r"(?<=[\w)}])\*\*(?=[\w({-])")
_PLAIN_NAME = re.compile(  # sqrt(2), 2pi, sin(x) without backslashes
    r"(?<![A-Za-z\\{_])(?:sqrt(?=\s*[({])|(?:arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp)(?=\s*\()"
    r"|pi(?![A-Za-z_(])|theta(?![A-Za-z_]))"
)
_BINOMIAL = re.compile(r"(?<![A-Za-z\\_])(?:C\((\w+),\s*(\w+)\)|C_\{?(\w+)\}?\^\{?(\w+)\}?)")
_HTML = re.compile(r"<(/?)(su[pb])>")
_JOINED = re.compile(r"\\text\{([^{}]*?[^{}\s])\s+,?(and|or)\s*\}")
_STOP = re.compile(r"(?<=[\w}])\.(?=\s*[)\]])")
_TAB = re.compile(r"\t(?=ext\{|imes\b|frac\b|heta\b|an\b)")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[A-Za-z]+\}\s*")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\s*")
_NULL_FENCE = re.compile(r"\\(?:left|right)\s*\.")
_SPACES = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|hspace\*?\{[^{}]*\}|displaystyle(?![A-Za-z]))|~|\s+"
)
_MATHS_MARKS = re.compile(r"\\[()]|(?<!\\)\\\[|\\\](?!\\)|(?<!\\)\$+")
_ALIASES = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "mbox": "\\text", "textbf": "\\text",
    "textit": "\\text", "textrm": "\\text", "textnormal": "\\text", "mathbf": "\\text", "mathit": "\\text",
    "mathsf": "\\text", "bf": "", "rm": "", "le": "\\leq", "leqslant": "\\leq", "ge": "\\geq",
    "geqslant": "\\geq", "ne": "\\neq", "lt": "<", "gt": ">", "lbrace": "\\{", "rbrace": "\\}", "lparen": "(",
    "rparen": ")", "lbrack": "[", "rbrack": "]", "land": " and ", "lor": " or ", "backslash": "\\setminus",
    "varnothing": "\\emptyset", "degree": "^\\circ", "colon": ":", "vert": "|", "rvert": "|", "lvert": "|",
    "ast": "*", "minus": "-", "infin": "\\infty", "dollar": "\\$", "thinspace": " ", "enspace": " ",
    "limits": "", "nolimits": "", "limit": "", "cdotp": "\\cdot", "dotsc": "\\dots", "ldots": "\\dots",
    "cdots": "\\dots", "dbinom": "\\binom", "tbinom": "\\binom", "lg": "\\log_{10}",
}  # fmt: skip
_ALIAS = re.compile(r"\\(" + "|".join(_ALIASES) + r")(?![A-Za-z])")
_THOUSANDS_TEX = re.compile(r"(?<=\d)(?:\{,\}|,?\\!\s*|(?:\\[,;: ])+\s*)(?=\d{3}(?!\d))")
_THOUSANDS_BLANK = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d ]*/)(?!\d)")
_MIXED = re.compile(r"(?<![\d./^])(\d+) +(\d+)/(\d+)(?![\d/])")
_RELATIONS = {"<=": "\\leq ", "=<": "\\leq ", ">=": "\\geq ", "!=": "\\neq ", "==": "="}
_RELATION = re.compile("|".join(map(re.escape, _RELATIONS)))

TOKEN = re.compile(r"\\begin\{[a-z]+\*?\}|\\end\{[a-z]+\*?\}|\\[A-Za-z]+|\\.|.", re.DOTALL)
OPENING = frozenset(["(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle"])
CLOSING = frozenset([")", "]", "}", "\\}", "\\rfloor", "\\rceil", "\\rangle"])


def clean(text: str) -> str:
    """The same answer in one notation: no `$`, no sizes, one blank for every kind of space, one name for a macro."""
    text = _RADICAL.sub(r"\\sqrt{\1}", _unicode(text))
    text = _TAB.sub(r"\\t", text.translate(_SIGNS))
    text = _HTML.sub(lambda match: "}" if match[1] else "^{" if match[2] == "sup" else "_{", text)
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _BINOMIAL.sub(r"\\binom{\1\3}{\2\4}", _PLAIN_NAME.sub(r"\\\g<0>", _PYTHON_POWER.sub("^", text)))
    text = _MATHS_MARKS.sub(" ", text.replace("\\$", "\x00").replace("\\%", "%"))
    text = re.sub(r"\x00", r"\\$", text)
    text = _SIZES.sub("", _NULL_FENCE.sub("", text))
    text = _THOUSANDS_TEX.sub("", text)
    text = _SPACES.sub(" ", _COLOUR.sub("", text))
    text = _ALIAS.sub(lambda match: _ALIASES[match[1]], text)
    text = text.replace("^{\\circ}", "^\\circ").replace("^{ \\circ }", "^\\circ")
    text = _JOINED.sub(r"\\text{\1}\\text{ \2 }", text)
    text = _STOP.sub("", text)
    text = _RELATION.sub(lambda match: _RELATIONS[match[0]], text)
    text = _THOUSANDS_BLANK.sub(lambda match: match[0].replace(" ", ""), text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    return _stripped(text)


def _unicode(text: str) -> str:
    """Full-width signs, exponents, indices and fractions that Unicode has as one sign each, in plain ones."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0]).replace('−', '-')}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _FRACTION.sub(_in_latex, text)
    return _FULL_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def _in_latex(fraction: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", fraction[0]).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _stripped(text: str) -> str:
    """Without blanks, quotes, stars of Markdown and the full stop of the sentence."""
    text = text.strip(' *_`"')
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip(" *")
    return text.rstrip(" ,;")


def tokens(text: str) -> Iterator[tuple[int, str, int]]:
    """(position, token, depth): macros whole, all else by the character; the depth of brackets is that before it.

    A bracket closes whatever bracket is open, so that `[0,1)` balances.
    """
    depth = 0
    for match in TOKEN.finditer(text):
        token = match[0]
        if token in CLOSING or token.startswith("\\end{"):
            depth -= 1
            yield match.start(), token, depth
            continue
        yield match.start(), token, depth
        if token in OPENING or token.startswith("\\begin{"):
            depth += 1


def split(text: str, separator: re.Pattern[str]) -> list[tuple[str, str]]:
    """(separator before it, piece) for the pieces of `text` between separators outside all brackets."""
    if separator.search(text) is None:
        return [("", text.strip())]
    pieces: list[tuple[str, str]] = []
    before, start, free = "", 0, 0
    for position, _, depth in tokens(text):
        if depth == 0 and position >= free and (match := separator.match(text, position)) is not None:
            pieces.append((before, text[start:position].strip()))
            before, start = match[0].strip(), match.end()
            free = max(match.end(), position + 1)
    pieces.append((before, text[start:].strip()))
    return pieces


def balanced(text: str) -> bool:
    """Whether every bracket that opens closes, of whatever kind."""
    depth, token = 0, ""
    for _, last, level in tokens(text):
        depth, token = level, last
        if depth < 0:
            return False
    opens = token in OPENING or token.startswith("\\begin{")
    return depth == 0 and not opens


def fenced(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) where one pair of brackets holds the whole text, else None."""
    opening = closing = ""
    end = 0
    for position, token, depth in tokens(text):
        if position == 0:
            if token not in OPENING:
                return None
            opening = token
        elif depth == 0:
            if closing or token not in CLOSING:
                return None
            closing, end = token, position
    return (opening, text[len(opening) : end].strip(), closing) if closing else None
