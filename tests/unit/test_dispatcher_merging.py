"""Which stages become one launch, and which do not."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.types import Shape, StageKind
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import (
    COST,
    LONG,
    PROFILE,
    SHORT,
    SPECS,
    a_cluster,
    a_ready,
    device_ids,
)

ENCODE, DIFFUSE, DECODE = StageKind


def legs(kind: StageKind, shape: Shape = SHORT, **cluster: Any) -> list[StageKind]:
    """Return the stages that the launch of one waiting task goes on with."""
    dispatcher = TridentDispatcher(COST, Knobs(merge=True, scale_up=False))
    [launch] = dispatcher.plan([a_ready("r", shape, kind)], a_cluster(**cluster)).assignments
    return [leg.stage.kind for leg in launch.then]


def test_on_a_lone_device_all_stages_are_one_launch() -> None:
    assert legs(ENCODE, per_node=1) == [DIFFUSE, DECODE]
    assert legs(DIFFUSE, per_node=1) == [DECODE]
    assert legs(DECODE, per_node=1) == []


def test_a_diffuse_that_idle_devices_would_make_wider_is_launched_for_itself() -> None:
    assert legs(ENCODE, LONG, per_node=8) == []
    busy = device_ids(1)[1:]
    assert legs(ENCODE, SHORT, busy=busy) == [DIFFUSE, DECODE]


def test_a_decode_that_has_a_pool_goes_there() -> None:
    pools = {"n0g1": DECODE}
    assert legs(DIFFUSE, per_node=2, pools=pools) == []


def test_a_decode_that_idle_devices_would_share_out_is_launched_for_itself() -> None:
    spec = msgspec.structs.replace(SPECS[0], decodes_frames=True)
    cost = CostModel([spec], PROFILE, learn=False)
    view = a_cluster(per_node=2)
    for decode_degree, expected in ((1, [DECODE]), (8, [])):
        knobs = Knobs(merge=True, scale_up=False, decode_degree=decode_degree)
        plan = TridentDispatcher(cost, knobs).plan([a_ready("r", SHORT, DIFFUSE)], view)
        [launch] = plan.assignments
        assert launch.degree == 1
        assert [leg.stage.kind for leg in launch.then] == expected


def test_a_launch_on_several_devices_is_not_merged() -> None:
    assert legs(DIFFUSE, LONG, per_node=8) == []


def test_weights_that_would_have_to_be_loaded_first_do_not_hold_a_stage_up() -> None:
    view = a_cluster(per_node=1)
    [device] = view.devices
    held = frozenset(stage for stage in device.resident if stage.kind is not DECODE)
    view = msgspec.structs.replace(view, devices=(msgspec.structs.replace(device, resident=held),))
    dispatcher = TridentDispatcher(COST, Knobs(merge=True))
    [launch] = dispatcher.plan([a_ready("r", SHORT, ENCODE)], view).assignments
    assert [leg.stage.kind for leg in launch.then] == [DIFFUSE]
