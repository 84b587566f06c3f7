"""Where previews are decoded: on what is idle, best where the decoder is, else in free memory."""

from __future__ import annotations

import msgspec
import pytest

from engine.types import ClusterView, Purpose, StageKind
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import COST, a_cluster, a_ready

PREVIEW = a_ready("r", kind=StageKind.DECODE, purpose=Purpose.PREVIEW)


def teams(view: ClusterView) -> list[tuple[str, ...]]:
    plan = TridentDispatcher(COST, Knobs(scale_up=False)).plan([PREVIEW], view)
    return [launch.team for launch in plan.assignments]


def without_decoder(free_bytes: int | None = None) -> ClusterView:
    """Return two devices that hold denoisers only; the second one is idle."""
    pools = {"n0g0": StageKind.DIFFUSE, "n0g1": StageKind.DIFFUSE}
    view = a_cluster(per_node=2, busy=["n0g0"], pools=pools)
    if free_bytes is None:
        return view
    devices = (msgspec.structs.replace(d, free_bytes=free_bytes) for d in view.devices)
    return msgspec.structs.replace(view, devices=tuple(devices))


def test_an_idle_device_that_holds_the_decoder_is_taken_first() -> None:
    pools = {"n0g0": StageKind.DIFFUSE, "n0g1": StageKind.DECODE}
    assert teams(a_cluster(per_node=2, pools=pools)) == [("n0g1",)]


@pytest.mark.parametrize(("free_bytes", "expected"), [(None, [("n0g1",)]), (1000, [])])
def test_without_one_it_is_loaded_into_free_memory_only(
    free_bytes: int | None, expected: list[tuple[str, ...]]
) -> None:
    assert teams(without_decoder(free_bytes)) == expected
