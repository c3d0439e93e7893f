"""The service: an engine in its thread, asked from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch
from made_models import MLA_MOE, sharp, texts, tokenizer

from fathom.core.chat import Sampling
from fathom.core.errors import UsageError
from fathom.engine.engine import Engine
from fathom.engine.server.backend import Busy, Draining, EngineFailed
from fathom.engine.service import Piece, Service, Stream
from fathom.engine.settings import EngineSettings

TOKENIZER = tokenizer()
CONFIG = MLA_MOE.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
PROMPTS = texts(CONFIG, 5, 9, 1, 13)


def engine(**settings: float) -> Engine:
    return Engine(sharp(CONFIG, dtype=torch.float32), TOKENIZER, EngineSettings(**{"cache_gb": 0.01, **settings}))


def with_service(
    ask: Callable[[Service], Awaitable[None]], made: Engine | None = None, waiting: int = 1024
) -> None:
    async def main() -> None:
        service = Service(made or engine(), waiting=waiting)
        try:
            await asyncio.wait_for(ask(service), 60)
        finally:
            service.close()

    asyncio.run(main())


async def everything(stream: Stream) -> list[list[Piece]]:
    """The pieces of each completion."""
    found: dict[int, list[Piece]] = {}
    async for pieces in stream:
        for piece in pieces:
            found.setdefault(piece.index, []).append(piece)
    return [found[index] for index in sorted(found)]


def test_what_streams_is_what_the_engine_completes() -> None:
    sampling = Sampling(max_tokens=12, seed=3, logprobs=2)
    expected = engine().complete(PROMPTS, sampling, n=3)

    async def ask(service: Service) -> None:
        streams = [service.submit(prompt, sampling, 3) for prompt in PROMPTS]
        for group, completions in zip(await asyncio.gather(*map(everything, streams)), expected, strict=True):
            for pieces, completion in zip(group, completions, strict=True):
                assert tuple(t for p in pieces for t in p.tokens) == completion.tokens
                assert "".join(p.text for p in pieces) == completion.text
                assert pieces[-1].finish == completion.finish and all(p.finish is None for p in pieces[:-1])
                assert [t for p in pieces for t, *_ in [[i for i, _ in top] for top in p.top]] == [
                    top[0][0] for top in completion.top]
                assert max(abs(a - b) for a, b in zip((x for p in pieces for x in p.logprobs), completion.logprobs,
                                                      strict=True)) < 1e-4
        stats = service.stats()
        assert stats["blocks_used"] == stats["running"] == stats["waiting"] == 0
        assert stats["prompt_tokens_total"] == 3 * sum(map(len, PROMPTS))
        assert stats["completion_tokens_total"] == sum(len(c.tokens) for group in expected for c in group)

    with_service(ask)


def test_a_cancelled_stream_frees_its_blocks_and_leaves_the_others_alone() -> None:
    sampling = Sampling(max_tokens=200, seed=3, ignore_stop=True)

    async def ask(service: Service) -> None:
        gone, kept = service.submit(PROMPTS[0], sampling, 4), service.submit(PROMPTS[1], sampling)
        await anext(aiter(gone))
        gone.cancel()
        gone.cancel()
        steps = service.engine.decoded
        while service.stats()["running"] != 1:
            await asyncio.sleep(0)
        assert service.engine.decoded - steps <= 3 * 5  # a few steps at most
        (pieces,) = await everything(kept)
        assert sum(len(p.tokens) for p in pieces) == 200
        assert service.stats()["blocks_used"] == 0

    with_service(ask)


def test_too_many_are_turned_away_and_a_drained_service_takes_none() -> None:
    sampling = Sampling(max_tokens=100, ignore_stop=True)

    async def ask(service: Service) -> None:
        first = service.submit(PROMPTS[0], sampling)
        await anext(aiter(first))
        waiting = service.submit(PROMPTS[1], sampling, 2)
        with pytest.raises(Busy, match="2 completions wait already, 3 may") as caught:
            service.submit(PROMPTS[2], sampling, 2)
        assert caught.value.retry_after >= 1
        drained = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            service.submit(PROMPTS[3], sampling)
        groups = await asyncio.gather(everything(first), everything(waiting))
        assert [group[-1][-1].finish for group in groups] == ["length", "length"]
        await drained

    with_service(ask, engine(batch=1), waiting=3)


def test_what_can_never_be_done_is_refused_at_once() -> None:
    async def ask(service: Service) -> None:
        with pytest.raises(UsageError, match="max_tokens=300"):
            service.submit(PROMPTS[0], Sampling(max_tokens=300))
        with pytest.raises(UsageError, match="token 99999"):
            service.submit([99_999], Sampling(max_tokens=3))
        with pytest.raises(UsageError, match="logit_bias"):
            service.submit(PROMPTS[0], Sampling(max_tokens=3, logit_bias={99_999: 1.0}))
        with pytest.raises(UsageError, match="cache holds"):
            service.submit(PROMPTS[0], Sampling(max_tokens=240))

    with_service(ask, engine(cache_gb=4e-5))


def test_a_broken_engine_fails_what_is_under_way_and_serves_the_next() -> None:
    made = engine()
    weight = made.model.lm_head.weight

    async def ask(service: Service) -> None:
        kept = weight.detach().clone()
        stream = service.submit(PROMPTS[0], Sampling(max_tokens=200, ignore_stop=True))
        await anext(aiter(stream))
        with torch.no_grad():
            await service.update(1, {"lm_head.weight": torch.full_like(kept, float("nan"))})
        with pytest.raises(EngineFailed, match="FathomError"):
            await everything(stream)
        await service.update(2, {"lm_head.weight": kept})
        (pieces,) = await everything(service.submit(PROMPTS[0], Sampling(max_tokens=4, ignore_stop=True)))
        assert [p.version for p in pieces] == [2] * 4
        assert service.stats()["failures_total"] == 1 and service.stats()["blocks_used"] == 0

    with_service(ask, made)


def test_an_update_changes_the_version_between_two_tokens() -> None:
    made = engine()
    sharper = {name: tensor * 1.3 for name, tensor in made.model.state_dict().items()}
    sampling = Sampling(max_tokens=150, temperature=0, ignore_stop=True)

    async def ask(service: Service) -> None:
        stream = service.submit(PROMPTS[3], sampling)
        pieces = await anext(aiter(stream))
        await service.update(7, sharper)
        (rest,) = await everything(stream)
        versions = [p.version for p in [*pieces, *rest]]
        assert versions == sorted(versions) and set(versions) == {0, 7}
        tokens = [t for p in [*pieces, *rest] for t in p.tokens]
        before = versions.count(0)
        rest_of_it = sampling.model_copy(update={"max_tokens": 150 - before})
        ((again,),) = await service.call(
            lambda: service.engine.complete([[*PROMPTS[3], *tokens[:before]]], rest_of_it))
        assert list(again.tokens) == tokens[before:]  # as if the new weights had been given this beginning

    with_service(ask, made)


def test_scores_are_those_of_one_forward_pass() -> None:
    made = engine()
    expected = made.score([*PROMPTS], top=2)

    async def ask(service: Service) -> None:
        found = await asyncio.gather(*(service.score(prompt, 2) for prompt in PROMPTS))
        for (logprobs, top), scored in zip(found, expected, strict=True):
            assert logprobs[0] is None and top[0] is None
            assert logprobs[1:] == pytest.approx(scored.logprobs[1:], abs=1e-4)
            assert [[i for i, _ in one] for one in top[1:]] == [[i for i, _ in one] for one in scored.top[1:]]
        with pytest.raises(UsageError, match="0 tokens"):
            await service.score([], 0)

    with_service(ask, made)


def test_a_closed_service_fails_what_is_under_way() -> None:
    async def ask(service: Service) -> None:
        stream = service.submit(PROMPTS[0], Sampling(max_tokens=200, ignore_stop=True))
        await anext(aiter(stream))
        service.close()
        with pytest.raises(EngineFailed, match="stopped"):
            await everything(stream)

    with_service(ask)
