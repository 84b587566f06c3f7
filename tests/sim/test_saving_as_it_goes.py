"""A diffuse that saves as it goes: what a lost device costs then; on the virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import WorkerLostError
from engine.messages import Saving
from engine.types import DeviceId, DispatchPlan, PlanId, Resize
from schedulers.sim.clock import run_virtual
from tests.sim.test_core_changes import Scripted, diffusing, launch
from tests.support.builders import a_request, devices
from tests.support.engines import SimulatedEngine, simulated_engine

STEPS = 20  # of half a second; the encode before takes one second, the decode after it two
FIRST = DeviceId("fake:0")


def saving_engine(saving: Saving | None, count: int = 2, at_s: float = 1e9) -> SimulatedEngine:
    sim = simulated_engine(devices(count), saving=saving, restart_s=1.0)
    sim.executor._duration_s = lambda a: (a.task.steps_left or 2) / 2 / a.degree
    sim.core._dispatcher = Scripted(at_s, lambda _view: None)  # type: ignore[assignment]
    return sim


async def end_s(sim: SimulatedEngine, *kills_s: float, requests: int = 1) -> float:
    """Run requests of one batch while the first device dies again and again; audit what is left."""
    dispatcher = sim.core._dispatcher
    assert isinstance(dispatcher, Scripted)
    dispatcher.batch = requests > 1
    await sim.core.start()
    loop = asyncio.get_running_loop()
    for at_s in kills_s:
        loop.call_at(at_s, sim.executor.kill, FIRST)
    wishes = [a_request(f"r{i}", steps=STEPS) for i in range(requests)]
    await asyncio.gather(*(sim.core.generate(wish) for wish in wishes))
    await asyncio.sleep(0)
    at_s = loop.time()
    sim.core.check_integrity()
    assert sim.executor.alive == {}
    await sim.core.close()
    return at_s


def ends_at(saving: Saving | None, *kills_s: float, requests: int = 1) -> float:
    async def scenario() -> float:
        return await end_s(saving_engine(saving), *kills_s, requests=requests)

    return run_virtual(scenario())


@pytest.mark.parametrize(
    ("saving", "steps_lost"),
    [
        (None, 14),  # all that was done
        (Saving(5, 0.0), 4),  # since step 10
        (Saving(5, 6.0), 2),  # since step 12, the first after six seconds
        (Saving(5, 60.0), 14),  # shorter than that saves nothing
        (Saving(100, 0.0), 14),
    ],
)
def test_a_lost_device_costs_the_steps_since_the_last_save(
    saving: Saving | None, steps_lost: int
) -> None:
    undisturbed_s = ends_at(saving)
    assert ends_at(saving, 8.1) == pytest.approx(undisturbed_s + 0.1 + steps_lost / 2)


def test_every_task_of_a_launch_is_saved() -> None:
    assert ends_at(Saving(5, 0.0), 8.1, requests=2) < ends_at(None, 8.1, requests=2) - 4


def test_as_many_losses_as_one_likes_are_survived_while_each_attempt_saves_something() -> None:
    kills_s = (4.1, 7.6, 11.1, 14.6, 18.1)

    async def scenario() -> float:
        return await end_s(saving_engine(Saving(2, 0.0), count=1), *kills_s)

    assert run_virtual(scenario()) < 30
    with pytest.raises(WorkerLostError, match="3 times in a row"):
        run_virtual(end_s(saving_engine(None, count=1), *kills_s))


def test_a_resize_that_fails_at_its_boundary_gives_the_team_back() -> None:
    """A save is no pause: what saved and died must not go on where a resize wanted it."""

    async def scenario() -> None:
        sim = saving_engine(Saving(1, 0.0), at_s=4.2)
        dispatcher = sim.core._dispatcher
        assert isinstance(dispatcher, Scripted)

        def change(view: object) -> DispatchPlan:
            running = diffusing(view)  # type: ignore[arg-type]
            onward = launch(running.task, [*running.team, DeviceId("fake:1")])
            return DispatchPlan(id=PlanId(9), resizes=(Resize(running.task.id, onward),))

        dispatcher.change = change
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request(steps=STEPS)))
        await asyncio.sleep(4.3)  # asked to stop at 4.5
        assert len(sim.core.cluster.teams.busy) == 2
        sim.executor.kill(FIRST, for_good=True)
        await work
        sim.core.check_integrity()
        assert sim.core.cluster.teams.busy == frozenset()
        assert sim.executor.alive == {}
        await sim.core.close()

    run_virtual(scenario())
