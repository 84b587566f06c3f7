"""Memory ledgers and teams under random operations never promise what is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.errors import LedgerError
from engine.residency import DeviceMemory
from engine.teams import Teams
from engine.types import DeviceId, DeviceInfo, ModelId, StageKey, StageKind, TaskId

CAPACITY = 1000
STAGES = [StageKey(ModelId(m), kind) for m in ("m1", "m2", "m3") for kind in StageKind]
TASKS = [TaskId(f"t{i}") for i in range(6)]
DEVICES = [DeviceId(f"d{i}") for i in range(6)]


class MemoryLedger(RuleBasedStateMachine):
    """Admit, evict, reserve, settle and make room in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = DeviceMemory(DeviceInfo(DeviceId("d"), "n", CAPACITY + 50), reserve_bytes=50)

    @rule(stage=st.sampled_from(STAGES), size=st.integers(0, 700))
    def admit(self, stage: StageKey, size: int) -> None:
        allowed = stage not in self.memory.weights and size <= self.memory.free_bytes
        if allowed:
            self.memory.admit(stage, size)
        else:
            with pytest.raises(LedgerError):
                self.memory.admit(stage, size)

    @rule(stage=st.sampled_from(STAGES))
    def arrive(self, stage: StageKey) -> None:
        if stage in self.memory.weights:
            self.memory.loaded.add(stage)

    @rule(stage=st.sampled_from(STAGES))
    def evict(self, stage: StageKey) -> None:
        if stage in self.memory.weights:
            self.memory.evict(stage)
        else:
            with pytest.raises(LedgerError):
                self.memory.evict(stage)

    @rule(task=st.sampled_from(TASKS), size=st.integers(0, 700))
    def reserve(self, task: TaskId, size: int) -> None:
        if task not in self.memory.activations and size <= self.memory.free_bytes:
            self.memory.reserve(task, size)
        else:
            with pytest.raises(LedgerError):
                self.memory.reserve(task, size)

    @rule(task=st.sampled_from(TASKS))
    def settle(self, task: TaskId) -> None:
        self.memory.settle(task)
        assert task not in self.memory.activations

    @rule(
        needed=st.integers(0, 1200),
        keep=st.sampled_from(STAGES),
        desired=st.frozensets(st.sampled_from(STAGES)),
    )
    def make_room(self, needed: int, keep: StageKey, desired: frozenset[StageKey]) -> None:
        evictions = self.memory.make_room(needed, frozenset({keep}), desired)
        if evictions is None:
            weights = self.memory.weights
            most = sum(weights[stage] for stage in self.memory.loaded if stage != keep)
            assert self.memory.free_bytes + most < needed
            return
        assert keep not in evictions
        for stage in evictions:
            self.memory.evict(stage)
        assert self.memory.free_bytes >= needed

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        self.memory.check_integrity()


TestMemoryLedger = MemoryLedger.TestCase


@given(st.lists(st.tuples(st.sampled_from(TASKS), st.lists(st.sampled_from(DEVICES), max_size=4))))
def test_a_team_is_gained_whole_or_not_at_all(
    requests: list[tuple[TaskId, list[DeviceId]]],
) -> None:
    teams, held = Teams(), {}
    for task, team in requests:
        fits = team and len(set(team)) == len(team) and not set(team) & set(held)
        before = teams.busy
        if fits:
            teams.acquire(task, team, until_s=1.0)
            held |= dict.fromkeys(team, task)
        else:
            with pytest.raises(LedgerError):
                teams.acquire(task, team, until_s=1.0)
            assert teams.busy == before
        teams.check_integrity()
    for task in TASKS:
        teams.release(task)
    assert teams.busy == frozenset()
