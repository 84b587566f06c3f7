"""Batches in whole simulations: encodes, denoise steps and decodes of several requests in one run."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from engine.types import ModelId, StageKind
from schedulers.profile import load_profile
from schedulers.sim.audit import audit
from schedulers.sim.config import SimConfig
from schedulers.sim.events import FinishEvent, RunEvent, SimEvent
from schedulers.sim.run import simulate
from schedulers.sim.traces import TraceRow

SD3 = ModelId("sd3")
ROWS = tuple(
    TraceRow(arrival_s=0.0, height=512, width=512, frames=1, steps=20, slo_scale=50.0)
    for _ in range(8)
)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The L20 profile, were a batch of four to take 1.6 times as long as one."""
    known = load_profile("l20")
    model = known.models[SD3]
    stages = {
        kind: msgspec.structs.replace(
            stage,
            entries=stage.entries
            + tuple(
                msgspec.structs.replace(entry, batch=4, duration_s=1.6 * entry.duration_s)
                for entry in stage.entries
                if entry.degree == 1 and kind is not StageKind.ENCODE
            ),
        )
        for kind, stage in model.stages.items()
    }
    models = {SD3: msgspec.structs.replace(model, stages=stages)}
    path = tmp_path_factory.mktemp("profile") / "batches.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, models=models)))
    return str(path)


def run(profile: str, switches: Mapping[str, int]) -> list[SimEvent]:
    events: list[SimEvent] = []
    config = SimConfig(
        profile=profile, models=(SD3,), gpus=1, policy="trident", rows=iter(ROWS), switches=switches
    )
    simulate(config, on_event=events.append)
    assert audit(events) == []
    assert len([event for event in events if isinstance(event, FinishEvent)]) == len(ROWS)
    return events


def largest(events: list[SimEvent], kind: StageKind) -> int:
    return max(len(e.requests) for e in events if isinstance(e, RunEvent) and e.stage is kind)


def end_s(events: list[SimEvent]) -> float:
    return max(event.t for event in events if isinstance(event, FinishEvent))


def test_denoise_steps_and_decodes_are_shared_where_that_pays(profile: str) -> None:
    alone, steps = run(profile, {}), run(profile, {"step_batch": 4})
    both = run(profile, {"step_batch": 4, "decode_batch": 4})
    diffuse, decode = StageKind.DIFFUSE, StageKind.DECODE
    assert (largest(alone, diffuse), largest(alone, decode)) == (1, 1)
    assert (largest(steps, diffuse), largest(steps, decode)) == (4, 1)
    assert (largest(both, diffuse), largest(both, decode)) == (4, 4)
    assert end_s(both) < end_s(steps) < end_s(alone)


def test_encodes_of_a_pool_are_shared_by_themselves() -> None:
    events: list[SimEvent] = []
    rows = (TraceRow(arrival_s=0.0, height=960, width=544, frames=17, steps=4) for _ in range(40))
    config = SimConfig(
        profile="l20", models=(ModelId("hunyuanvideo"),), gpus=128, policy="trident", rows=rows
    )
    simulate(config, on_event=events.append)
    assert largest(events, StageKind.ENCODE) == 8
