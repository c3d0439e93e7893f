"""Byte-level BPE: train, encode, chat template, loss mask.

Text that a user wrote never becomes a control token, and a prompt has the same tokens in training and in generation:
a chat is encoded in pieces, cut where a generation prompt ends and after each stop token, so the mask falls on token
borders by construction. Only at the first of these cuts can the ids differ from those of the rendering encoded as one
text: where a merge would reach over it, as of "\\n" ending a prompt with "\\n" beginning an answer. A model that
generates never sees that merge.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fathom.core import disk
from fathom.core.chat import Message
from fathom.core.config import read_text
from fathom.core.errors import FathomError
from fathom.model.fim import DEEPSEEK, Form, cut, markers, order
from fathom.model.template import LONGEST_TEMPLATE, ChatTemplate, family
from fathom.model.turns import Plain, Prompts, Span, Turns, guard, is_guarded, unguard

if TYPE_CHECKING:
    import numpy
    import tokenizers

_log = logging.getLogger(__name__)

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
CONTROL = (BOS, EOS, PAD, USER, ASSISTANT)
MARKS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, but text like any other
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

TEMPLATE = family("v3")  # what a vocabulary of ours gets, and one whose directory says nothing
LARGEST = 128 << 20  # bytes of tokenizer.json
_BARRED = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_OPENING = re.compile(r"(<[^<>\s]+>)\s*\Z")  # a mark at the end of a generation prompt: R1's <think>


class Special(NamedTuple):
    """The control tokens that a family's template needs."""

    bos: str | None
    eos: str
    pad: str
    control: tuple[str, ...]


SPECIAL = {
    **dict.fromkeys(("v2", "v3", "r1"), Special(BOS, EOS, PAD, CONTROL)),
    "llama3": Special("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    **dict.fromkeys(("qwen2", "qwen2.5", "qwen3"), Special(None, "<|im_end|>", "<|endoftext|>", _CHATML)),
    "smollm2": Special("<|im_start|>", "<|im_end|>", "<|im_end|>", _CHATML),
}


class Encoded(NamedTuple):
    """Token ids and, for each, whether the model is trained to produce it."""

    tokens: list[int]
    trained: list[bool]


class Tokenizer:
    """A byte-level BPE vocabulary with a chat template."""

    def __init__(
        self, backend: tokenizers.Tokenizer, template: str = TEMPLATE, bos: str | None = BOS, eos: str = EOS,
        pad: str | None = None, add_bos: bool = False, stops: Iterable[int] = (),
    ):
        """`bos` is None where a family has none; `add_bos` puts it before chats whose template writes none; `stops`
        are ids that end a completion beside `eos` and the token that the template writes after an answer."""
        self.backend, self.template = backend, template
        self.bos, self.eos, self.pad, self.add_bos = bos, eos, pad or self._pad(backend, eos), add_bos
        self.bos_id = None if bos is None else self._id(bos)
        self.eos_id = self._id(eos)
        self._stops = frozenset(stops)
        added = backend.get_added_tokens_decoder()
        if unknown := [i for i in self._stops if backend.id_to_token(i) is None]:
            raise FathomError(f"tokenizer: no token {unknown[0]} to stop at; correct eos_token_id in "
                              "generation_config.json, or in config.json where there is none")
        self._added = {t.content: i for i, t in added.items()}
        self._cuts = _pattern(self._added)
        self._turns = Turns(ChatTemplate(template, {"bos_token": bos, "eos_token": eos, "pad_token": self.pad}))
        # Some vocabularies do not call their control tokens special: DeepSeek-V3's <｜User｜>. Here they are.
        structure = {self.bos, self.eos, self.pad, *self._written()}
        self._lifted = [t for i, t in added.items() if not t.special and t.content not in MARKS and (
            _BARRED.fullmatch(t.content) or i in self._stops or t.content in structure)]
        if self._lifted:
            from tokenizers import AddedToken

            backend.add_special_tokens([AddedToken(
                t.content, single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=t.normalized,
                special=True) for t in self._lifted])
        lifted = {t.content for t in self._lifted}
        control = {i: t.content for i, t in added.items() if t.special or t.content in lifted}
        self.control_ids = frozenset(control)  # of the tokens that no text becomes unless asked
        self._control = _pattern(control.values())

    def _id(self, token: str) -> int:
        number = self.backend.token_to_id(token)
        if number is None:
            raise FathomError(f"tokenizer: no token {token!r:.80}; add it to the vocabulary, or name another one in "
                              "tokenizer_config.json")
        return number

    @staticmethod
    def _pad(backend: tokenizers.Tokenizer, eos: str) -> str:
        return PAD if backend.token_to_id(PAD) is not None else eos

    @property
    def vocab_size(self) -> int:
        """Number of tokens, control tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def _sample(self) -> tuple[str, list[Span]]:
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return self._turns.locate(asked, False, {})

    def _found(self, text: str, start: int = 0, end: int | None = None) -> Iterator[re.Match[str]]:
        """The added tokens that stand in a rendering."""
        return iter(()) if self._cuts is None else self._cuts.finditer(text, start, len(text) if end is None else end)

    def _written(self) -> set[str]:
        """The added tokens that the template writes, marks left out."""
        try:
            text = self._sample[0]
        except FathomError:  # it refuses such a chat, which `chat` will say: those that its source names
            text = self._turns.template.source
        return {found[0] for found in self._found(text) if found[0] not in MARKS}

    @functools.cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a completion: EOS, those of generation_config.json, and the one that the template writes
        after an assistant's turn."""
        text, spans = self._sample
        ends = [self._added[found[0]] for found in self._found(text, spans[1].end)]
        return self._stops | {self.eos_id, *ends[:1]}

    @functools.cached_property
    def written_ids(self) -> frozenset[int]:
        """The tokens that give a chat its structure: those that the template writes, BOS and EOS."""
        return frozenset(self._id(token) for token in (*self._written(), self.bos, self.eos) if token is not None)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, template: str | None = None, infill: bool = False
    ) -> Tokenizer:
        """A tokenizer learnt from `texts`; digits stand alone, as in DeepSeek-V2's. Deterministic in its input.

        `template` names a family (see FAMILIES) whose template and control tokens it gets, V3's if None; `infill` adds
        DeepSeek's FIM markers, after all others.
        """
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend

        source = family(template or "v3")
        special = SPECIAL[template or "v3"]
        marks = [*MARKS, *(DEEPSEEK if infill else ())]
        smallest = 256 + len(special.control) + len(marks)
        if vocab_size < smallest:
            raise FathomError(f"vocab_size={vocab_size}: bytes and control tokens need {smallest}; ask for more")
        backend = Backend(models.BPE())
        split = pre_tokenizers.Split(Regex(r"\p{N}| ?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|\s+"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(marks), special_tokens=list(special.control), show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
        if infill:
            backend.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in DEEPSEEK])
        return cls(backend, source, special.bos, special.eos, special.pad)

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Token ids of `text`, no BOS added; control tokens are plain text unless `control` asks for them.

        Raises FathomError for a lone surrogate (U+D800–DFFF), which is in no text that UTF-8 can write.
        """
        self.backend.encode_special_tokens = not control
        try:
            with _library("tokenizer.json"):
                return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # the library's word for a text that is not UTF-8
            bad = re.search("[\ud800-\udfff]", text)
            if bad is None:
                raise
            raise FathomError(f"text: character {bad.start()} is half of a surrogate pair ({ord(bad[0]):#x}), which is "
                              "no character; read the text as UTF-8 with errors='replace'") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, control tokens left out, broken UTF-8 replaced."""
        with _library("tokenizer.json"):
            return self.backend.decode(list(tokens), skip_special_tokens=True)

    def document(self, text: str) -> Encoded:
        """A document for pre-training: BOS where there is one, text, EOS, every token after the first trained."""
        return self._document(self.encode(text))

    def fim(self, text: str, rng: numpy.random.Generator, rate: float, form: Form = "psm") -> Encoded:
        """A document that with the probability `rate` is told as prefix, suffix, middle, cut where `rng` says.

        The mask is that of `document`. Raises FathomError where the vocabulary has no markers for it.
        """
        ids = markers(self.backend)
        if rng.random() >= rate:
            return self.document(text)
        prefix, middle, suffix = (self.encode(part) for part in cut(text, rng))
        return self._document(order(ids, prefix, suffix, middle, form))

    def infill(self, prefix: str, suffix: str, form: Form = "psm") -> list[int]:
        """Token ids that ask for what belongs between two texts."""
        asked = order(markers(self.backend), self.encode(prefix), self.encode(suffix), [], form)
        return asked if self.bos_id is None else [self.bos_id, *asked]

    def _document(self, content: list[int]) -> Encoded:
        tokens = [*([] if self.bos_id is None else [self.bos_id]), *content, self.eos_id]
        return Encoded(tokens, [False] + [True] * (len(tokens) - 1))

    def prompt(self, messages: Sequence[Message], **extra: Any) -> list[int]:
        """Token ids that ask for the next assistant turn; `extra` are settings of the template (enable_thinking)."""
        text, _ = self._turns.locate(self._plain(messages), True, extra)
        return self._begin(text) + self._encode(text)

    def chat(self, messages: Sequence[Message], keep_thinking: bool = True, **extra: Any) -> Encoded:
        """A finished chat; the assistant's turns are trained, the token that ends each of them included.

        Trained is what the model would have to write: from where the generation prompt ends, which includes what the
        template puts before an answer (Qwen3's empty <think></think>), to the stop token. Templates of reasoning models
        drop what stands before </think>, R1's even in the last turn; `keep_thinking` keeps it there, and the last
        answer follows `prompt`. Raises FathomError where the template hides what is to be trained.
        """
        plain = self._plain(messages)
        text, spans = self._turns.locate(plain, False, extra)
        prompts = Prompts(self._turns, text, plain, spans, extra)
        begins = prompts.ends()
        starts = sorted(span.start for span in spans)
        front = len(self.bos) if self.bos is not None and text.startswith(self.bos) else 0
        trained = []
        for i, message in enumerate(plain):
            if message["role"] != "assistant":
                continue
            begin, end = max(begins[i], front), spans[i].end
            place = bisect.bisect_left(starts, end) + (spans[i].start == end)  # an empty turn does not follow itself
            following = starts[place] if place < len(starts) else len(text)
            if keep_thinking and i == len(plain) - 1 and self._drops_thinking(text, plain, extra):
                asked = prompts.ask(i)
                answer = _after(asked, message["content"])
                text = asked + answer + text[end:]
                begin, end = len(asked), len(asked) + len(answer)
                following = len(text)
            trained.append(Span(begin, self._stop(text, max(begin, end), following)))
        tokens = self._begin(text)
        mask = [False] * len(tokens)
        at = 0
        for span in trained:
            for piece, on in ((text[at: span.start], False), (text[span.start: span.end], True)):
                ids = self._encode(piece)
                tokens += ids
                mask += [on] * len(ids)
            at = span.end
        ids = self._encode(text[at:])
        encoded = Encoded(tokens + ids, mask + [False] * len(ids))
        if not any(encoded.trained):
            raise FathomError("chat: no assistant turn, so nothing would be trained; add one")
        return encoded

    def _plain(self, messages: Sequence[Message]) -> Plain:
        return [{"role": m.role, "content": guard(m.text, self._control)} for m in messages]

    def _begin(self, text: str) -> list[int]:
        """BOS where the vocabulary wants one and the template wrote none."""
        if not self.add_bos or self.bos is None or self.bos_id is None or text.startswith(self.bos):
            return []
        return [self.bos_id]

    def _drops_thinking(self, text: str, plain: Plain, extra: dict[str, Any]) -> bool:
        """Whether the template leaves out what the last message has before </think>."""
        content = plain[-1]["content"]
        thinking, end, answer = content.partition("</think>")
        if not end:
            return False
        changed = {**plain[-1], "content": f"{thinking}-{end}{answer}"}
        return self._turns.template.render([*plain[:-1], changed], False, extra) == text

    def _stop(self, text: str, end: int, following: int) -> int:
        """Where the stop token ends that stands in `text` between an answer's end and what follows; else `end`."""
        for found in self._found(text, end, following):
            if self._added[found[0]] in self.stop_ids:
                return found.end()
        return end

    def _encode(self, text: str) -> list[int]:
        """Token ids of a piece of a rendering, what was guarded as text and the rest with control tokens."""
        if not is_guarded(text) or self._control is None:
            return self.encode(text, control=True)
        ids: list[int] = []
        at = 0
        for found in self._control.finditer(text):
            ids += [*self.encode(unguard(text[at: found.start()])), self._added[found[0]]]
            at = found.end()
        return ids + self.encode(unguard(text[at:]))

    def files(self) -> dict[str, bytes]:
        """The files of a Hugging Face directory that hold this tokenizer."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": self.bos, "eos_token": self.eos,
            "pad_token": self.pad, "add_bos_token": self.add_bos, "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        }
        self.backend.encode_special_tokens = False
        with _library("tokenizer.json"):
            backend = self.backend.to_str(pretty=False)
        if self._lifted:  # the file says of its tokens what it said
            lifted = {token.content for token in self._lifted}
            written = json.loads(backend)
            for token in written["added_tokens"]:
                token["special"] = token["special"] and token["content"] not in lifted
            backend = json.dumps(written, ensure_ascii=False, separators=(",", ":"))
        return {
            "tokenizer.json": backend.encode(),
            "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2).encode(),
            "chat_template.jinja": self.template.encode(),
        }

    @classmethod
    def load(cls, directory: Path, template: str | None = None) -> Tokenizer:
        """The tokenizer of a model directory; errors name the file and what is wrong with it.

        `template` names a family whose chat template is taken in place of the directory's. Where there is neither, it
        is V3's form, and the log says so.
        """
        from tokenizers import Tokenizer as Backend

        path = directory / "tokenizer.json"
        if not path.is_file():
            raise FathomError(f"{path}: no such file; name a directory that holds one, like DIR/model of a stage")
        source = read_text(path, LARGEST)
        with _library(path):
            backend = Backend.from_str(source)
            # settings of somebody's last call, which would cut prompts and fill up answers without a word
            backend.no_truncation()
            backend.no_padding()
        settings = disk.read_json(directory / "tokenizer_config.json")
        where = directory / "tokenizer_config.json"
        bos, eos, pad = (_named(where, settings, name) for name in ("bos_token", "eos_token", "pad_token"))
        if "bos_token" not in settings and backend.token_to_id(BOS) is not None:
            bos = BOS
        if eos is None and "eos_token" in settings:
            raise FathomError(f"{where}: eos_token=None: must be text; write the token there")
        text = family(template) if template else _template(directory, settings)
        add_bos = settings.get("add_bos_token")
        if add_bos is None and bos is not None:
            with _library(path):
                add_bos = backend.encode("", add_special_tokens=True).ids[:1] == [backend.token_to_id(bos)]
        try:
            return cls(backend, text, bos, eos or EOS, pad, bool(add_bos) and bos is not None, _stops(directory))
        except FathomError as error:
            raise FathomError(f"{directory}: {error}") from error


@contextlib.contextmanager
def _library(path: Path | str) -> Iterator[None]:
    """What the tokenizers library raises over a file, as FathomError: its bare base class, or a panic of its Rust."""
    try:
        yield
    except BaseException as error:  # a panic is no Exception, and its class cannot be imported
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise FathomError(f"{path}: not a tokenizer that works ({str(error)[:120]}); write it anew") from error


def _named(path: Path, settings: dict[str, Any], name: str) -> str | None:
    token = settings.get(name)
    if token is None:
        return None
    token = token.get("content") if isinstance(token, dict) else token  # Hugging Face writes either form
    if not isinstance(token, str):
        raise FathomError(f"{path}: {name}={settings[name]!r:.80}: must be text; write the token there")
    return token


def _template(directory: Path, settings: dict[str, Any]) -> str:
    """The chat template that a directory holds, as a file of its own or in tokenizer_config.json."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return read_text(file, LONGEST_TEMPLATE)
    found = settings.get("chat_template")
    if isinstance(found, list):  # several with names
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        if "default" not in named:
            raise FathomError(f"{directory / 'tokenizer_config.json'}: chat_template has {', '.join(map(str, named))}, "
                              "and none is called default; write the one to use to chat_template.jinja")
        found = named["default"]
    if found is None:
        _log.warning("%s: no chat template there, so chats have DeepSeek-V3's form; for another one write "
                     "chat_template.jinja", directory)
        return TEMPLATE
    if not isinstance(found, str):
        raise FathomError(f"{directory / 'tokenizer_config.json'}: chat_template={found!r:.80}: must be text; write it "
                          "to chat_template.jinja")
    return found


def _stops(directory: Path) -> list[int]:
    """`eos_token_id` of generation_config.json or, where there is no such file, of config.json, if that is there."""
    path = directory / "generation_config.json"
    if not path.is_file():
        path = directory / "config.json"
    if not path.is_file():
        return []
    found = disk.read_json(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 32 for i in ids):
        raise FathomError(f"{path}: eos_token_id={found!r:.80}: must be a token id or a list of them; correct it")
    return ids


def _after(asked: str, content: str) -> str:
    """`content` less the mark at its beginning that the prompt already ends in: R1's <think>."""
    opening = _OPENING.search(asked)
    if opening is None or not content.startswith(opening[1]):
        return content
    whole = opening[0]
    return content.removeprefix(whole) if content.startswith(whole) else content.removeprefix(opening[1])


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of any of `tokens`, the longest first; as a tree, since some vocabularies have a thousand of them."""
    tree: dict[str, Any] = {}
    for token in tokens:
        branch = tree
        for character in token:
            branch = branch.setdefault(character, {})
        branch[""] = {}
    tree.pop("", None)
    return re.compile(_branches(tree)) if tree else None


def _branches(tree: dict[str, Any]) -> str:
    prefix = ""
    while len(tree) == 1 and "" not in tree:
        (character, tree), = tree.items()
        prefix += re.escape(character)
    choices = [re.escape(character) + _branches(below) for character, below in tree.items() if character]
    if not choices:
        return prefix
    return f"{prefix}(?:{'|'.join(choices)})" + ("?" if "" in tree else "")
