"""Chats of each model family written out by hand: what the text is, and which of it a model is trained to write."""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fathom.core.chat import Message
from fathom.model.tokenizer import SPECIAL, Tokenizer

Pieces = list[tuple[str, bool]]  # text, and whether it is trained

DATA = Path(os.environ.get("FATHOM_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "deepseek_tokenizers"
TOLD = ["Be brief.", "You are careful.\nYou answer in one line.", "  Indented, and so it stays. "]
ASKED = [
    "What is 2 + 2?", "Name a prime between 90 and 100.", "Écris « bonjour » en grec.", "你好，世界",
    "def f(x):\n    return x", "  why? "]
ANSWERED = ["4", "97 is prime.\n\nIt is odd.", "γεια σου 🙂", "世界你好。", "It returns x .", "Because it is so.  "]
THOUGHT = [
    "<think>\nTwo and two.\n</think>\n\n4", "<think>97 = 97 * 1</think>97 is prime.", "<think></think>\n\nγεια σου",
    "<think>\na <b> c\n\nd\n</think>\n世界你好。", "<think>\nshort\n</think>\n\nIt returns x .",
    "no mark</think>Because."]


def chats(thinking: bool = False) -> Iterator[list[dict[str, str]]]:
    """Finished chats of 1 to 6 turns, with and without a system text."""
    answers = THOUGHT if thinking else ANSWERED
    for turns in range(1, 7):
        for first in (0, 2, 5):
            pairs = [((first + i) % 6, (first + 2 * i) % 6) for i in range(turns)]
            talk = [m for a, b in pairs for m in (
                {"role": "user", "content": ASKED[a]}, {"role": "assistant", "content": answers[b]})]
            yield talk
            yield [{"role": "system", "content": TOLD[(first + turns) % 3]}, *talk]


def messages(chat: list[dict[str, str]]) -> list[Message]:
    return [Message(m["role"], m["content"]) for m in chat]


@functools.cache
def learnt(family: str) -> Tokenizer:
    """A small vocabulary with the control tokens of a family."""
    return Tokenizer.train([*TOLD, *ASKED, *ANSWERED, *THOUGHT] * 3, 420, family)


def directory(version: str, folder: Path) -> Path:
    """A directory with one of DeepSeek's own tokenizers; v3_think is v3's with other added tokens. Skips without."""
    base = "v3" if version == "v3_think" else version
    if not (DATA / base / "tokenizer.json.gz").is_file():
        pytest.skip(f"{DATA / base / 'tokenizer.json.gz'} is not there")
    raw = gzip.decompress((DATA / base / "tokenizer.json.gz").read_bytes())
    if version != base:
        named = {t["id"]: t for t in json.loads((DATA / version / "added_tokens.json").read_bytes())}
        whole = json.loads(raw)
        whole["added_tokens"] = [{**t, **named.get(t["id"], {})} for t in whole["added_tokens"]]
        raw = json.dumps(whole, ensure_ascii=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(raw)
    (folder / "tokenizer_config.json").write_bytes((DATA / version / "tokenizer_config.json").read_bytes())
    return folder


def written(family: str, chat: list[dict[str, str]], generate: bool = False, keep: bool = True,
            switch: bool | None = None) -> Pieces:
    """A chat as a family writes it. `keep`: the last turn keeps its thinking; `switch` is Qwen3's enable_thinking."""
    bos, eos, _, _ = SPECIAL[family]
    out: Pieces = []
    last = len(chat) - 1
    if family == "v2":
        out += [(bos or "", False)]
        for m in chat:
            match m["role"]:
                case "system":
                    out += [(m["content"] + "\n\n", False)]
                case "user":
                    out += [("User: " + m["content"] + "\n\n", False)]
                case _:
                    out += [("Assistant:", False), (" " + m["content"] + eos, True)]
        return [*out, ("Assistant:", False)] if generate else out
    if family in ("v3", "r1"):
        out += [(bos or "", False), ("\n\n".join(m["content"] for m in chat if m["role"] == "system"), False)]
        for i, m in enumerate(chat):
            text = m["content"]
            if m["role"] == "user":
                out += [("<｜User｜>" + text, False)]
            elif m["role"] == "assistant" and family == "r1" and "</think>" in text and keep and i == last:
                text = text.removeprefix("<think>").removeprefix("\n") if text.startswith("<think>\n") else (
                    text.removeprefix("<think>"))
                out += [("<｜Assistant｜><think>\n", False), (text + eos, True)]
            elif m["role"] == "assistant":
                text = text.split("</think>")[-1] if family == "r1" else text
                given = "<think>\n" if family == "r1" and text.startswith("<think>\n") else ""  # by the prompt
                out += [("<｜Assistant｜>" + given, False), (text.removeprefix(given) + eos, True)]
        asks = "<｜Assistant｜><think>\n" if family == "r1" else "<｜Assistant｜>"
        return [*out, (asks, False)] if generate else out
    if family == "llama3":
        out += [("<|begin_of_text|>", False)]
        for m in chat:
            head = f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n"
            out += [(head, False), (m["content"].strip() + "<|eot_id|>", m["role"] == "assistant")]
        return [*out, ("<|start_header_id|>assistant<|end_header_id|>\n\n", False)] if generate else out
    standard = {
        "qwen2": "You are a helpful assistant.", "qwen3": None,
        "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }[family]
    if standard is not None and chat[0]["role"] != "system":
        out += [(f"<|im_start|>system\n{standard}<|im_end|>\n", False)]
    question = max(i for i, m in enumerate(chat) if m["role"] == "user")
    for i, m in enumerate(chat):
        text, head = m["content"], f"<|im_start|>{m['role']}\n"
        if m["role"] != "assistant":
            out += [(head + text + "<|im_end|>\n", False)]
            continue
        if family == "qwen3":
            thought, _, answer = text.rpartition("</think>")
            thought = thought.partition("</think>")[0].rpartition("<think>")[2].strip("\n")
            text = answer.lstrip("\n") if "</think>" in text else text
            if i > question and (i == last or thought):
                text = text.lstrip("\n")
                if switch is False and thought:  # what was asked for without thinking has some: not what is asked
                    head, text = head + "<think>\n", thought + "\n</think>\n\n" + text
                elif switch is False:
                    head += "<think>\n\n</think>\n\n"
                else:
                    text = "<think>\n" + thought + "\n</think>\n\n" + text
        out += [(head, False), (text + "<|im_end|>", True), ("\n", False)]
    if generate:
        out += [("<|im_start|>assistant\n", False)]
        if family == "qwen3" and switch is False:
            out += [("<think>\n\n</think>\n\n", False)]
    return out


def text_of(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def reference(backend: Any, pieces: Pieces) -> tuple[list[int], list[bool]]:
    """Ids of the whole text as the library encodes it, and for each whether it begins in a trained stretch."""
    backend.encode_special_tokens = False
    encoded = backend.encode(text_of(pieces), add_special_tokens=False)
    letters = [on for text, on in pieces for _ in text]
    return encoded.ids, [letters[start] for start, _ in encoded.offsets]
