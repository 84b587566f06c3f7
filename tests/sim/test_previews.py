"""Previews on the core loop in virtual time: shown in order, never in anybody's way."""

from __future__ import annotations

import asyncio

import pytest

from engine import Along
from engine.previews import preview_steps
from engine.types import Preview, RequestId, StageKind
from schedulers.sim.clock import run_virtual
from tests.support.builders import a_request, devices
from tests.support.engines import STAGE_SECONDS, SimulatedEngine, simulated_engine


async def shown(sim: SimulatedEngine, **changes: object) -> tuple[list[tuple[int, int]], float]:
    """Return output and number of every preview of one request, and when the request ended."""
    seen: list[Preview] = []
    await sim.core.start()
    await sim.core.generate(a_request(**changes), along=Along(show=seen.append))
    ended_s = asyncio.get_running_loop().time()
    await asyncio.sleep(10)  # a preview may still be in the air
    sim.core.check_integrity()
    assert sim.executor.alive == {}
    await sim.core.close()
    return [(preview.artifact.index, preview.index) for preview in seen], ended_s


def test_previews_come_in_order_and_cost_no_time() -> None:
    plain = run_virtual(shown(simulated_engine()))
    watched = run_virtual(shown(simulated_engine(), previews=3, steps=20))
    assert plain == ([], pytest.approx(sum(STAGE_SECONDS.values())))
    assert watched == ([(0, 0), (0, 1), (0, 2)], plain[1])


def test_a_single_device_has_no_time_for_previews() -> None:
    assert run_virtual(shown(simulated_engine(devices(1)), previews=3)) == (
        [],
        pytest.approx(sum(STAGE_SECONDS.values())),
    )


def test_a_preview_that_would_be_in_the_way_of_the_decode_is_dropped() -> None:
    seconds = {**STAGE_SECONDS, StageKind.DECODE: 6.0}
    slow = simulated_engine(duration_s=lambda task: seconds[task.stage.kind])

    async def taught() -> tuple[list[tuple[int, int]], float]:
        seen: list[Preview] = []
        await slow.core.start()
        await slow.core.generate(a_request("teaches", steps=20))
        began_s = asyncio.get_running_loop().time()
        await slow.core.generate(
            a_request("watched", previews=3, steps=20), along=Along(show=seen.append)
        )
        took_s = asyncio.get_running_loop().time() - began_s
        await slow.core.close()
        return [(p.artifact.index, p.index) for p in seen], took_s

    assert run_virtual(taught()) == ([(0, 0)], pytest.approx(1 + 10 + 6))


def test_a_preview_that_waits_is_not_told_of_as_a_stage_of_its_request() -> None:
    async def scenario() -> list[str]:
        sim = simulated_engine(devices(1))
        await sim.core.start()
        show = Along(show=lambda _preview: None)
        work = asyncio.create_task(
            sim.core.generate(a_request("r", previews=3, steps=20), along=show)
        )
        await asyncio.sleep(1 + 9.0)  # two latents were left; nobody has time for them
        nodes = [decision.task.node for decision in sim.core.decisions(RequestId("r"))]
        await work
        await sim.core.close()
        return nodes

    assert run_virtual(scenario()) == ["encode", "diffuse-0"]


def test_every_output_has_its_own_previews() -> None:
    previews, _ = run_virtual(shown(simulated_engine(devices(5)), n=2, previews=1, steps=20))
    assert sorted(previews) == [(0, 0), (1, 0)]


def test_a_diffuse_that_starts_over_shows_nothing_twice() -> None:
    async def scenario() -> list[tuple[int, int]]:
        sim = simulated_engine(devices(4))
        loop = asyncio.get_running_loop()
        diffusing = sim.executor.devices[1]
        loop.call_later(1 + 7.0, lambda: sim.executor.kill(diffusing))
        return (await shown(sim, previews=3, steps=20))[0]

    assert run_virtual(scenario()) == [(0, 0), (0, 1), (0, 2)]


def test_a_cancelled_request_leaves_no_latent() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        work = asyncio.create_task(
            sim.core.generate(
                a_request(previews=3, steps=20), along=Along(show=lambda _preview: None)
            )
        )
        await asyncio.sleep(1 + 3.0)  # the first preview is being decoded
        work.cancel()
        await asyncio.sleep(20)
        sim.core.check_integrity()
        assert sim.executor.alive == {}
        await sim.core.close()

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("previews", "steps", "expected"),
    [
        (0, 20, ()),
        (1, 20, (10,)),
        (3, 20, (5, 10, 15)),
        (3, 2, (1,)),
        (2, 1, ()),
        (3, 14, (4, 7, 10)),
    ],
)
def test_previews_are_spread_evenly_and_never_at_the_end(
    previews: int, steps: int, expected: tuple[int, ...]
) -> None:
    assert preview_steps(previews, steps) == expected
