"""Prompt embeddings kept across requests, on the virtual clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embeddings import embedding_key
from engine.executors.fake import HANDOFF_BYTES
from engine.types import Shape, StageKind
from schedulers.sim.clock import run_virtual
from tests.support.builders import a_request
from tests.support.engines import SimulatedEngine, simulated_engine


async def stages(sim: SimulatedEngine, name: str, **changes: Any) -> list[StageKind]:
    """Return the stages that were run for a request."""
    result = await sim.core.generate(a_request(name, **changes))
    sim.core.check_integrity()
    return [timing.stage for timing in result.timeline]


def test_a_prompt_of_the_same_tenant_is_encoded_once_whatever_is_drawn_of_it() -> None:
    async def scenario() -> None:
        sim = simulated_engine(embedding_bytes=10 * HANDOFF_BYTES)
        await sim.core.start()
        assert StageKind.ENCODE in await stages(sim, "first")
        again = {"seed": 9, "steps": 2, "shape": Shape(128, 64), "n": 2, "guidance_scale": 7.0}
        assert StageKind.ENCODE not in await stages(sim, "again", **again)
        assert (sim.core.embeddings.hits, sim.core.embeddings.misses) == (1, 1)
        assert len(sim.executor.alive) == 1
        await sim.core.close()

    run_virtual(scenario())


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "globex"},
        {"prompt": "a red circle "},
        {"negative_prompt": "blue"},
        {"guidance_scale": 1.0},
        {"model": "other"},
    ],
)
def test_what_encoding_could_tell_apart_is_encoded_anew(other: dict[str, Any]) -> None:
    assert embedding_key(a_request("1")) != embedding_key(a_request("2", **other))


def test_without_guidance_the_negative_prompt_is_not_read() -> None:
    plain = a_request("1", guidance_scale=1.0)
    assert embedding_key(plain) == embedding_key(
        a_request("2", guidance_scale=0.0, negative_prompt="blue")
    )


def test_an_engine_that_keeps_none_encodes_every_time() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        for name in ("first", "again"):
            assert StageKind.ENCODE in await stages(sim, name)
        assert sim.executor.alive == {}
        await sim.core.close()

    run_virtual(scenario())


def test_cancelling_a_request_that_was_spared_its_encode_keeps_the_embeddings() -> None:
    async def scenario() -> None:
        sim = simulated_engine(embedding_bytes=10 * HANDOFF_BYTES)
        await sim.core.start()
        await stages(sim, "first")
        work = asyncio.create_task(sim.core.generate(a_request("cancelled")))
        await asyncio.sleep(3)
        work.cancel()
        await asyncio.sleep(3)
        assert len(sim.executor.alive) == 1
        assert StageKind.ENCODE not in await stages(sim, "third")
        await sim.core.close()

    run_virtual(scenario())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.booleans()), max_size=12),
    st.integers(0, 3),
)
def test_whatever_comes_and_goes_the_cache_stays_in_its_bounds_and_frees_the_rest(
    arrivals: list[tuple[int, int, bool]], capacity: int
) -> None:
    async def scenario() -> None:
        sim = simulated_engine(embedding_bytes=capacity * HANDOFF_BYTES)
        await sim.core.start()

        async def one(number: int, prompt: int, at_s: int, *, cancel: bool) -> None:
            await asyncio.sleep(at_s)
            request = a_request(f"r{number}", prompt=f"prompt {prompt}")
            work = asyncio.create_task(sim.core.generate(request))
            if cancel:
                await asyncio.sleep(at_s % 7)
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            sim.core.check_integrity()

        await asyncio.gather(
            *(one(i, p, at_s, cancel=c) for i, (p, at_s, c) in enumerate(arrivals))
        )
        await asyncio.sleep(60)
        sim.core.check_integrity()
        assert len(sim.executor.alive) * HANDOFF_BYTES == sim.core.embeddings.used_bytes
        assert sim.core.embeddings.used_bytes <= capacity * HANDOFF_BYTES
        sim.core.embeddings.clear()
        assert sim.executor.alive == {}
        await sim.core.close()

    run_virtual(scenario())
