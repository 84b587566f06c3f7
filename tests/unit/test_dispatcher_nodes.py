"""Which of several nodes a stage is placed on: where its input lies, if that is nearer."""

from __future__ import annotations

import pytest

from engine.types import DeviceId, StageKind
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import SHORT, SPECS, a_cluster, a_ready, far_apart

LAST = DeviceId("n1g7")
NEAR, FAR = 0.01, 0.5


def node_of(kind: StageKind, across_s: float, **cluster: object) -> str:
    """Place a stage whose input lies on a busy device of the second node of two."""
    cost = CostModel(SPECS, far_apart(across_s), learn=False)
    task = a_ready("r", SHORT, kind, came_from=(LAST,))
    view = a_cluster(2, busy=[LAST, "n0g7"], **cluster)  # type: ignore[arg-type]
    [launch] = TridentDispatcher(cost, Knobs(scale_up=False)).plan([task], view).assignments
    return launch.team[0].partition("g")[0]


@pytest.mark.parametrize("kind", [StageKind.DIFFUSE, StageKind.DECODE])
@pytest.mark.parametrize(("across_s", "node"), [(NEAR, "n0"), (FAR, "n1")])
def test_of_nodes_with_as_many_idle_devices_the_nearer_one_is_taken(
    kind: StageKind, across_s: float, node: str
) -> None:
    assert node_of(kind, across_s) == node


@pytest.mark.parametrize(("across_s", "node"), [(NEAR, "n0"), (FAR, "n1")])
def test_a_decode_goes_to_the_nearer_part_of_its_pool(across_s: float, node: str) -> None:
    pools = {"n0g0": StageKind.DECODE, "n1g0": StageKind.DECODE}
    pools |= {f"n{n}g{g}": StageKind.DIFFUSE for n in range(2) for g in range(1, 8)}
    assert node_of(StageKind.DECODE, across_s, pools=pools) == node
