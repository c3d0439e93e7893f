"""The engine against the full forward pass: what it samples, with which probabilities, and what does not change it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from made_models import (
    DTYPES,
    GQA_TIED,
    MLA_LITE,
    MLA_MOE,
    TOLERANCE,
    assert_within,
    sharp,
    system,
    texts,
    tokenizer,
    user,
)

from fathom.core.chat import Completion, Sampling
from fathom.core.errors import FathomError
from fathom.engine.engine import Engine
from fathom.engine.sampler import Drawn
from fathom.engine.settings import EngineSettings
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer

TOKENIZER = tokenizer()
CONFIGS = {name: config.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
           for name, config in {"mla": MLA_MOE, "mla-lite": MLA_LITE, "gqa": GQA_TIED}.items()}
PROMPTS = texts(CONFIGS["mla"], 5, 9, 1, 5, 13, 7, 9)


def made(name: str = "mla", dtype: torch.dtype = torch.float32, **settings: float) -> Engine:
    return Engine(sharp(CONFIGS[name], dtype=dtype), TOKENIZER, EngineSettings(**settings))


def logprobs(groups: Sequence[Sequence[Completion]]) -> torch.Tensor:
    return torch.tensor([p for group in groups for c in group for p in c.logprobs], dtype=torch.float64)


def tokens(groups: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[c.tokens for c in group] for group in groups]


@torch.no_grad()
def full_logp(model: Transformer, prompt: Sequence[int], completion: Completion, temperature: float) -> torch.Tensor:
    """Log-softmax at every position of the completion, from one full forward pass of the float64 model."""
    row = [*prompt, *completion.tokens]
    logits = model.logits(model(torch.tensor(row), Layout.packed([len(row)])))
    return (logits[len(prompt) - 1: -1] / (temperature or 1.0)).log_softmax(-1)


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_the_argmax_of_the_full_forward_pass(name: str, dtype: torch.dtype) -> None:
    groups = made(name, dtype).complete(PROMPTS, Sampling(max_tokens=20, temperature=0))
    model = sharp(CONFIGS[name])
    rows = [full_logp(model, prompt, c, 0) for prompt, (c,) in zip(PROMPTS, groups, strict=True)]
    assert [c.tokens for (c,) in groups] == [tuple(row.argmax(-1).tolist()) for row in rows]
    assert_within(logprobs(groups), torch.cat([row.max(-1).values for row in rows]), TOLERANCE[dtype])
    assert len({c.tokens for (c,) in groups}) > 1


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_are_those_of_the_full_forward_pass(
    name: str, temperature: float, dtype: torch.dtype
) -> None:
    groups = made(name, dtype, batch=8).complete(
        PROMPTS, Sampling(max_tokens=12, temperature=temperature, seed=3), n=3)
    model = sharp(CONFIGS[name])
    expected = [
        full_logp(model, prompt, c, temperature).gather(1, torch.tensor(c.tokens)[:, None])[:, 0]
        for prompt, group in zip(PROMPTS, groups, strict=True) for c in group
    ]
    assert_within(logprobs(groups), torch.cat(expected), TOLERANCE[dtype])
    assert all(len({c.tokens for c in group}) == 3 for group in groups)  # each of the n draws for itself


@pytest.mark.equivalence
@pytest.mark.parametrize("name", ["mla", "gqa"])
def test_order_and_batch_size_change_nothing(name: str) -> None:
    sampling = Sampling(max_tokens=10, seed=11, top_p=0.95)
    expected = tokens(made(name, batch=64).complete(PROMPTS, sampling, n=3))
    assert tokens(made(name, batch=2).complete(PROMPTS, sampling, n=3)) == expected
    assert tokens(made(name, batch=5, prefill_tokens=8).complete(PROMPTS, sampling, n=3)) == expected
    order = [4, 1, 0, 6, 5, 3, 2]
    shuffled = tokens(made(name, batch=4).complete([PROMPTS[i] for i in order], sampling, n=3))
    assert [shuffled[order.index(i)] for i in range(len(PROMPTS))] == expected
    alone = [tokens(made(name).complete([p], sampling, n=3))[0] for p in PROMPTS]
    assert alone == expected
    assert tokens(made(name).complete(PROMPTS, sampling.model_copy(update={"seed": 12}), n=3)) != expected


def test_more_completions_begin_with_the_fewer() -> None:
    sampling = Sampling(max_tokens=12, seed=2)
    few, many = (tokens(made().complete(PROMPTS[:2], sampling, n=n)) for n in (2, 5))
    assert [group[:2] for group in many] == few


def test_a_prompt_asked_twice_is_answered_twice() -> None:
    first, other, second = made().complete([PROMPTS[1], PROMPTS[0], PROMPTS[1]], Sampling(max_tokens=12), n=2)
    assert len({c.tokens for c in (*first, *second)}) == 4
    assert tokens([other]) == tokens(made().complete([PROMPTS[0]], Sampling(max_tokens=12), n=2))


@pytest.mark.equivalence
@pytest.mark.parametrize("settings", [{"batch": 3}, {"block": 1}, {"block": 5, "prefill_tokens": 3},
                                      {"block": 4, "cache_gb": 2e-5}], ids=str)
def test_memory_and_the_size_of_a_step_change_nothing(settings: dict[str, float]) -> None:
    """Prompts in pieces, blocks of every size, so little memory that completions are computed anew."""
    sampling = Sampling(max_tokens=40, temperature=1.4, seed=4)
    expected = early(made()).complete(PROMPTS, sampling, n=4)
    assert len({len(c.tokens) for group in expected for c in group}) > 5  # they do end at different steps
    engine = early(made(**settings))
    found = engine.complete(PROMPTS, sampling, n=4)
    assert tokens(found) == tokens(expected)
    assert_within(logprobs(found), logprobs(expected), TOLERANCE[torch.float32])
    assert (engine.scheduler.preemptions > 0) == ("cache_gb" in settings)
    assert engine.blocks.available == engine.blocks.total


def early(engine: Engine) -> Engine:
    """The same engine with an end token that comes up often: its row of the head leans where the states lie."""
    with torch.no_grad():
        head = engine.model.lm_head.weight
        hidden = engine.model(torch.tensor(PROMPTS[4]), Layout.packed([13])).mean(0)
        head[TOKENIZER.eos_id] += hidden / hidden.norm() ** 2 * 8
    return engine


def test_the_end_token_ends_and_is_kept() -> None:
    engine = early(made())
    groups = engine.complete(PROMPTS, Sampling(max_tokens=40, seed=1), n=6)
    flat = [c for group in groups for c in group]
    stopped = [c for c in flat if c.finish == "stop"]
    cut = [c for c in flat if c.finish == "length"]
    assert stopped
    assert cut
    for c in stopped:
        assert c.tokens[-1] == TOKENIZER.eos_id
        assert TOKENIZER.eos_id not in c.tokens[:-1]
    for c in cut:
        assert len(c.tokens) == 40
        assert TOKENIZER.eos_id not in c.tokens
    for c in flat:
        assert len(c.logprobs) == len(c.tokens)
        assert c.text == TOKENIZER.decode(c.tokens)
    assert engine.decoded == sum(len(c.tokens) for c in flat)


def test_max_tokens() -> None:
    for limit in (1, 2, 7):
        groups = made().complete(PROMPTS, Sampling(max_tokens=limit, temperature=0))
        assert max(len(c.tokens) for (c,) in groups) == limit


class Scripted(Engine):
    """An engine whose sampling is replaced by a script: what it does with tokens is looked at, not which come."""

    def say(self, monkeypatch: pytest.MonkeyPatch, text_tokens: list[int], stop: tuple[str, ...]) -> Completion:
        script = iter(text_tokens)
        monkeypatch.setattr(self.sampler, "draw", lambda *_: Drawn([next(script)], [-0.5], [()]))
        return self.complete([[5, 6]], Sampling(max_tokens=len(text_tokens), stop=stop))[0][0]


def spelled(text: str) -> list[int]:
    """One token per byte, so that every string crosses token borders."""
    return [t for character in text for t in TOKENIZER.encode(character)]


@pytest.mark.parametrize(("said", "stop", "text", "used"), [
    ("abc</answer> and more", ("</answer>",), "abc", "abc</answer>"),
    ("one\n\ntwo", ("\n\n",), "one", "one\n\n"),
    ("one two three", ("three", "two"), "one ", "one two"),
    ("nothing here", ("stop",), "nothing here", "nothing here"),
    ("stop", ("stop",), "", "stop"),
    ("héllo→end", ("→",), "héllo", "héllo→"),
])
def test_stop_strings_are_cut_across_token_borders(
    said: str, stop: tuple[str, ...], text: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scripted(sharp(CONFIGS["mla"], dtype=torch.float32), TOKENIZER)
    ids = [TOKENIZER.encode(c)[0] if c.isascii() else None for c in said]
    if "</answer>" in said:  # spelled out in characters, the mark is text that was never one token
        assert all(i is not None for i in ids)
    completion = engine.say(monkeypatch, spelled(said), stop)
    assert completion.text == text
    assert completion.tokens == tuple(spelled(used))  # the tokens are what was sampled, the stop string included
    assert len(completion.logprobs) == len(completion.tokens)
    assert completion.finish == ("stop" if used != said or text != said else "length")


def test_stop_strings_that_arrive_within_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Scripted(sharp(CONFIGS["mla"], dtype=torch.float32), TOKENIZER)
    mark = TOKENIZER.encode("</answer>")
    assert len(mark) == 1
    completion = engine.say(monkeypatch, [*spelled("19"), *mark, *spelled("x")], ("</answer>",))
    assert (completion.text, completion.finish, completion.tokens) == ("19", "stop", (*spelled("19"), *mark))


def test_a_prompt_goes_through_the_model_once_per_group() -> None:
    engine = made(batch=64)
    unique = {tuple(p) for p in PROMPTS}
    engine.complete([*PROMPTS, PROMPTS[0]], Sampling(max_tokens=2), n=5)
    assert engine.prefilled == sum(map(len, unique))


def test_chat_prompts_are_the_tokenizers() -> None:
    engine = made()
    messages = [system("Be brief."), user("What is 12 + 7?")]
    sampling = Sampling(max_tokens=8, seed=9)
    assert tokens(engine.generate([messages], sampling, n=2)) == tokens(
        made().complete([TOKENIZER.prompt(messages)], sampling, n=2))


def test_the_engine_samples_from_what_the_trainer_holds() -> None:
    engine = made()
    sampling = Sampling(max_tokens=10, temperature=0)
    before = engine.complete(PROMPTS, sampling)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(1.3)
    engine.version = 4
    engine.model.train()
    after = engine.complete(PROMPTS, sampling)
    assert tokens(after) != tokens(before)
    assert {v for (c,) in before for v in c.versions} == {0}
    assert {v for (c,) in after for v in c.versions} == {4}
    assert engine.model.training  # left as it was found


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FathomError, match=r"prompt 1: 0 tokens"):
        made().complete([[1], []], Sampling(max_tokens=4))
    with pytest.raises(FathomError, match=r"prompt 0: 200 tokens.*max_tokens=57.*256"):
        made().complete([[1] * 200], Sampling(max_tokens=57))
    assert len(made().complete([[1] * 252], Sampling(max_tokens=4, temperature=0))[0][0].tokens) <= 4


def test_nothing_asked_is_nothing_answered_and_breaks_nothing() -> None:
    engine = made()
    expected = tokens(engine.complete(PROMPTS, Sampling(max_tokens=3)))
    assert engine.complete([], Sampling()) == []
    with pytest.raises(FathomError, match=r"n=0: at least one"):
        engine.complete(PROMPTS, Sampling(), n=0)
    with pytest.raises(FathomError, match=r"cache_gb=1e\+06: there are"):
        made(cache_gb=1e6)
    assert tokens(engine.complete(PROMPTS, Sampling(max_tokens=3))) == expected


def test_progress_counts_completions() -> None:
    seen: list[tuple[int, int]] = []
    made(batch=4).complete(PROMPTS, Sampling(max_tokens=2), n=2, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (14, 14)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_every_stop_token_ends_a_completion() -> None:
    """Llama 3 has three of them, and the one that ends a turn is not EOS."""
    engine = made()
    asked = Sampling(max_tokens=12, temperature=0)
    (plain,) = engine.complete([[1, 2, 3]], asked)[0]
    stop = plain.tokens[3]
    engine.tokenizer = copy.copy(engine.tokenizer)
    engine.tokenizer.__dict__["stop_ids"] = frozenset({stop})
    (ended,) = engine.complete([[1, 2, 3]], asked)[0]
    cut = plain.tokens[: plain.tokens.index(stop) + 1]
    assert (ended.tokens, ended.finish) == (cut, "stop")


class FiveWords:
    """A vocabulary of five, none of which ends."""

    stop_ids = frozenset()

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join("abcde"[t] for t in tokens)


def test_frequencies_of_whole_completions() -> None:
    """Two tokens drawn 4 000 times against the chain of the model's own conditional probabilities."""
    draws, config = 4000, MLA_LITE.model_copy(update={"vocab_size": 5})
    model, prompt = sharp(config, dtype=torch.float32), [3, 1, 4, 1]
    engine = Engine(model, FiveWords(), EngineSettings(batch=draws, cache_gb=1))
    group = engine.complete([prompt], Sampling(max_tokens=2, seed=8), n=draws)[0]
    assert engine.prefilled == len(prompt)
    with torch.no_grad():
        first = model.logits(model(torch.tensor(prompt), Layout.packed([4])))[-1].softmax(-1).double()
        rows = torch.tensor([[*prompt, a] for a in range(5)])
        hidden = model(rows.flatten(), Layout.packed([5] * 5)).view(5, 5, -1)[:, -1]
        second = model.logits(hidden).softmax(-1).double()
    expected = {(a, b): draws * float(first[a] * second[a, b]) for a in range(5) for b in range(5)}
    counts = {pair: sum(c.tokens == pair for c in group) for pair in expected}
    assert sum(counts.values()) == draws
    cells = [(counts[pair], e) for pair, e in expected.items() if e >= 5]
    if rest := draws - sum(e for _, e in cells):
        cells.append((draws - sum(c for c, _ in cells), rest))
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    degrees = len(cells) - 1
    # chi-square has mean k and deviation √(2k); four of them allowed, and the seed is fixed
    assert degrees >= 8
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5
    uniform = sum((c - draws / 25) ** 2 / (draws / 25) for c in counts.values())
    assert uniform > 10 * statistic  # the test can fail
