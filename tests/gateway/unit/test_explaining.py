"""What owners are told of the scheduler's decisions."""

from __future__ import annotations

import msgspec

from engine.types import RequestId
from gateway.explaining import explain
from gateway.jobs.record import new_job_id
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.sim.states import NOW_S, States


def test_a_reason_names_no_job_of_somebody_else() -> None:
    states, own, other = States(["cogvideox1.5-5b"], gpus=8), new_job_id(), new_job_id()
    state = states.draw(1, waiting=1, idle=1.0)
    launch = TridentDispatcher(states.cost).plan(state.waiting, state.view).assignments[0]
    request = msgspec.structs.replace(launch.task.request, id=RequestId(own))
    launch = msgspec.structs.replace(
        launch,
        task=msgspec.structs.replace(launch.task, request=request),
        why=f"{own} makes room for {other}",
    )
    told = explain(launch, states.cost, now_s=NOW_S, devices=8)
    assert told.why == f"{own} makes room for another job"
