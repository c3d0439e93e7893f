"""Fill in the middle: a document cut in three and told out of order, so that a model learns to infill.

DeepSeek-Coder-V2 §3.1 and DeepSeek-V3 §4.1: done per document before packing, at a rate of 0.5 (Coder-V2-Lite) or 0.1
(V3), in the order prefix, suffix, middle (PSM). SPM has the suffix first (Bavarian et al. 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fathom.core.errors import FathomError

if TYPE_CHECKING:
    import numpy
    import tokenizers

Form = Literal["psm", "spm"]


class Markers(NamedTuple):
    """The tokens that open a document cut in three, stand for the hole, and ask for what belongs there."""

    begin: str
    hole: str
    end: str


DEEPSEEK = Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
QWEN = Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def markers(backend: tokenizers.Tokenizer) -> tuple[int, int, int]:
    """The ids of a vocabulary's markers; raises FathomError where it has none."""
    for known in (DEEPSEEK, QWEN):
        begin, hole, end = (backend.token_to_id(token) for token in known)
        if begin is not None and hole is not None and end is not None:
            return begin, hole, end
    raise FathomError(f"fim: the vocabulary has neither {' '.join(DEEPSEEK)} nor {' '.join(QWEN)}; set fim=0, or learn "
                      "a vocabulary with infill=true")


def cut(text: str, rng: numpy.random.Generator) -> tuple[str, str, str]:
    """`text` as prefix, middle and suffix, cut at two places drawn evenly from all between characters and both ends."""
    first, second = sorted(int(place) for place in rng.integers(0, len(text) + 1, size=2))
    return text[:first], text[first:second], text[second:]


def order(
    ids: tuple[int, int, int], prefix: list[int], suffix: list[int], middle: list[int], form: Form
) -> list[int]:
    """Tokens of a document told out of order; an empty `middle` makes it the prompt that asks for it."""
    begin, hole, end = ids
    if form == "psm":
        return [begin, *prefix, hole, *suffix, end, *middle]
    if form == "spm":
        return [begin, hole, *suffix, end, *prefix, *middle]
    raise FathomError(f"form={form!r:.80}: write psm (prefix, suffix, middle) or spm (suffix, prefix, middle)")
