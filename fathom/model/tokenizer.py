"""Byte-level BPE: train, encode, chat template, loss mask.

Text that a user wrote never becomes a control token: contents and the template's own pieces are encoded apart, so a
prompt has the same tokens in training and in generation, and the mask falls on token borders by construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fathom.core import disk
from fathom.core.chat import Message
from fathom.core.config import read_text
from fathom.core.errors import FathomError

if TYPE_CHECKING:
    import tokenizers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
CONTROL = (BOS, EOS, PAD, USER, ASSISTANT)
MARKS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, but text like any other

# DeepSeek-V3's form: system text first, then turns, the end token after each assistant turn
TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
LONGEST_TEMPLATE = 1 << 20  # bytes


class Encoded(NamedTuple):
    """Token ids and, for each, whether the model is trained to produce it."""

    tokens: list[int]
    trained: list[bool]


class Tokenizer:
    """A byte-level BPE vocabulary with a chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, template: str = TEMPLATE, bos: str = BOS, eos: str = EOS):
        self.backend, self.template = backend, template
        self.bos, self.eos = bos, eos
        self.bos_id, self.eos_id = self._id(bos), self._id(eos)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            self._compiled = environment.from_string(template)
        except TemplateError as error:
            raise FathomError(f"chat template: {str(error)[:200]}; correct it to valid Jinja") from error

    def _id(self, token: str) -> int:
        number = self.backend.token_to_id(token)
        if number is None:
            raise FathomError(f"tokenizer: no token {token!r:.80}; add it to the vocabulary, or name another one in "
                              "tokenizer_config.json")
        return number

    @property
    def vocab_size(self) -> int:
        """Number of tokens, control tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A tokenizer learnt from `texts`; digits stand alone, as in DeepSeek-V2's. Deterministic in its input."""
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend

        smallest = 256 + len(CONTROL) + len(MARKS)
        if vocab_size < smallest:
            raise FathomError(f"vocab_size={vocab_size}: bytes and control tokens need {smallest}; ask for more")
        backend = Backend(models.BPE())
        split = pre_tokenizers.Split(Regex(r"\p{N}| ?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|\s+"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(MARKS), special_tokens=list(CONTROL), show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
        return cls(backend)

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Token ids of `text`, no BOS added; control tokens are plain text unless `control` asks for them."""
        self.backend.encode_special_tokens = not control
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, control tokens left out, broken UTF-8 replaced."""
        return self.backend.decode(list(tokens), skip_special_tokens=True)

    def document(self, text: str) -> Encoded:
        """A document for pre-training: BOS, text, EOS, every token after BOS trained."""
        tokens = [self.bos_id, *self.encode(text), self.eos_id]
        return Encoded(tokens, [False] + [True] * (len(tokens) - 1))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for the next assistant turn."""
        return self._render(messages, generate=True).tokens

    def chat(self, messages: Sequence[Message]) -> Encoded:
        """A finished chat; the assistant's turns are trained, the token that ends each of them included."""
        encoded = self._render(messages, generate=False)
        if not any(encoded.trained):
            raise FathomError("chat: no assistant turn, so nothing would be trained; add one")
        return encoded

    def _render(self, messages: Sequence[Message], generate: bool) -> Encoded:
        # contents are rendered as marks from the private-use area, which the text cannot hold: it is cut there
        marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
        plain = [{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)]
        try:
            text = self._compiled.render(
                messages=plain, bos_token=self.bos, eos_token=self.eos, add_generation_prompt=generate
            )
        except Exception as error:  # a template is a program: it can raise anything
            what = f"{type(error).__name__}: {str(error)[:200]}"
            raise FathomError(f"chat template: {what}; correct the template") from error
        tokens: list[int] = []
        trained: list[bool] = []
        ends_turn = False
        for i, (message, mark) in enumerate(zip(messages, marks, strict=True)):
            before, found, text = text.partition(mark)
            if not found:
                raise FathomError(f"chat template: message {i} ({message.role}) does not appear; change the template")
            self._piece(before, ends_turn, tokens, trained)
            ends_turn = message.role == "assistant"
            content = self.encode(message.text)
            tokens += content
            trained += [ends_turn] * len(content)
        self._piece(text, ends_turn, tokens, trained)
        return Encoded(tokens, trained)

    def _piece(self, text: str, ends_turn: bool, tokens: list[int], trained: list[bool]) -> None:
        piece = self.encode(text, control=True)
        stop = piece.index(self.eos_id) + 1 if ends_turn and self.eos_id in piece else 0
        tokens += piece
        trained += [True] * stop + [False] * (len(piece) - stop)

    def files(self) -> dict[str, bytes]:
        """The files of a Hugging Face directory that hold this tokenizer."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": self.bos, "eos_token": self.eos,
            "pad_token": PAD if self.backend.token_to_id(PAD) is not None else self.eos,
            "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        }
        self.backend.encode_special_tokens = False
        return {
            "tokenizer.json": self.backend.to_str(pretty=False).encode(),
            "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2).encode(),
            "chat_template.jinja": self.template.encode(),
        }

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer of a model directory; errors name the file and what is wrong with it."""
        from tokenizers import Tokenizer as Backend

        path = directory / "tokenizer.json"
        if not path.is_file():
            raise FathomError(f"{path}: no such file; name a directory that holds one, like DIR/model of a stage")
        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises its bare base class
            raise FathomError(f"{path}: not a tokenizer ({str(error)[:120]}); write it anew") from error
        settings = disk.read_json(directory / "tokenizer_config.json")
        template = directory / "chat_template.jinja"
        text = read_text(template, LONGEST_TEMPLATE) if template.is_file() else TEMPLATE
        named = []
        for name, default in (("bos_token", BOS), ("eos_token", EOS)):
            token = settings.get(name, default)
            token = token.get("content") if isinstance(token, dict) else token  # Hugging Face writes either form
            if not isinstance(token, str):
                raise FathomError(f"{directory / 'tokenizer_config.json'}: {name}={token!r:.80}: must be text; write "
                                  "the token there")
            named.append(token)
        try:
            return cls(backend, text, *named)
        except FathomError as error:
            raise FathomError(f"{directory}: {error}") from error

