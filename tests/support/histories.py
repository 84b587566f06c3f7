"""Valid random histories of a simulated cluster, and ways to corrupt them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from engine.types import DeviceId, ModelId, RequestId, StageKind
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    DeviceLostEvent,
    EvictEvent,
    FinishEvent,
    LoadEvent,
    RejectEvent,
    ResidentStage,
    RunEvent,
    RunOutcome,
    SimEvent,
    SwitchEvent,
)

MODEL = ModelId("m")
NODES, WIDTH = 2, 4
MEMORY_BYTES = 1000
WEIGHT_BYTES = {StageKind.ENCODE: 300, StageKind.DIFFUSE: 400, StageKind.DECODE: 100}
ROOM = (WEIGHT_BYTES[StageKind.DIFFUSE] + WEIGHT_BYTES[StageKind.DECODE], 500)


@dataclass
class History:
    """Plays requests one after another on the earliest free team; devices keep their own time.

    Devices hold diffuse and decode at first; to encode, one swaps weights in and out.
    """

    rng: random.Random
    events: list[SimEvent] = field(default_factory=list)
    free_s: dict[DeviceId, float] = field(default_factory=dict)
    dead: set[DeviceId] = field(default_factory=set)

    def begin(self) -> None:
        devices = [(DeviceId(f"g{i}"), f"n{i // WIDTH}") for i in range(NODES * WIDTH)]
        resident = tuple(
            ResidentStage(MODEL, kind, WEIGHT_BYTES[kind])
            for kind in (StageKind.DIFFUSE, StageKind.DECODE)
        )
        self.events.append(
            ClusterEvent(tuple(ClusterDevice(d, n, MEMORY_BYTES, resident) for d, n in devices))
        )
        self.free_s = {device: 0.0 for device, _ in devices}
        self.events.append(SwitchEvent(0.0, 1))

    def play(self, number: int, *, fate: str) -> None:
        """Add one request: `finish`, `reject` (at once) or `late` (after some pauses)."""
        request = RequestId(f"r{number}")
        arrival_s, steps = self.rng.uniform(0, 50), self.rng.randint(1, 6)
        slot = len(self.events)
        if fate == "reject":
            self.events.append(RejectEvent(arrival_s, request, "it fits nowhere"))
            end_s = arrival_s
        else:
            end_s = self._encode(request, arrival_s)
            end_s = self._diffuse(request, end_s, steps)
            end_s = self._run(request, StageKind.DECODE, self._team(1), end_s)
        deadline_s = end_s + (-0.1 if fate == "late" else self.rng.uniform(0.0, 9.0))
        self.events.insert(
            slot,
            ArriveEvent(
                t=arrival_s,
                request=request,
                model=MODEL,
                height=64,
                width=64,
                frames=1,
                steps=steps,
                deadline=deadline_s,
            ),
        )
        if fate != "reject":
            self.events.append(FinishEvent(end_s, request, fate != "late"))

    def lose(self) -> None:
        """Lose the device that is free last, after its last work."""
        device = max(set(self.free_s) - self.dead, key=lambda d: (self.free_s[d], d))
        self.dead.add(device)
        self.events.append(DeviceLostEvent(self.free_s[device] + 0.1, device))

    def _encode(self, request: RequestId, ready_s: float) -> float:
        (device,) = self._team(1)
        start = max(self.free_s[device], ready_s)
        load_s = self.rng.choice([0.0, 0.5])
        self._swap(device, start, load_s, (StageKind.DIFFUSE, StageKind.ENCODE))
        end = self._run(request, StageKind.ENCODE, (device,), ready_s)
        self._swap(device, self.free_s[device], 0.5, (StageKind.ENCODE, StageKind.DIFFUSE))
        return end

    def _swap(
        self, device: DeviceId, at: float, load_s: float, stages: tuple[StageKind, StageKind]
    ) -> None:
        """Evict the first stage at once, then load the second."""
        old, new = stages
        self.events.append(
            EvictEvent(
                start=at,
                end=at,
                device=device,
                model=MODEL,
                stage=old,
                bytes=WEIGHT_BYTES[old],
            )
        )
        self.events.append(
            LoadEvent(
                start=at,
                end=at + load_s,
                device=device,
                model=MODEL,
                stage=new,
                bytes=WEIGHT_BYTES[new],
            )
        )
        self.free_s[device] = at + load_s

    def _diffuse(self, request: RequestId, ready_s: float, steps: int) -> float:
        done = 0
        while done < steps:
            team = self._team(self.rng.choice([1, 2]))
            to = self.rng.randint(done + 1, steps)
            outcome = RunOutcome.DONE
            if to < steps:
                outcome = self.rng.choice([RunOutcome.PAUSED, RunOutcome.RESIZED])
            if self.rng.random() < 0.1:
                outcome, to = RunOutcome.FAILED, self.rng.randint(done, steps - 1)  # saved there
            ready_s = self._run(
                request, StageKind.DIFFUSE, team, ready_s, span=(done, to), outcome=outcome
            )
            done = to
        return ready_s

    def _run(
        self,
        request: RequestId,
        stage: StageKind,
        team: tuple[DeviceId, ...],
        ready_s: float,
        *,
        span: tuple[int, int] = (0, 0),
        outcome: RunOutcome = RunOutcome.DONE,
    ) -> float:
        start = max(ready_s, *(self.free_s[device] for device in team))
        end = start + self.rng.uniform(0.01, 3.0)
        self.events.append(
            RunEvent(
                start=start,
                end=end,
                requests=(request,),
                stage=stage,
                devices=team,
                degree=len(team),
                step_from=span[0],
                step_to=span[1],
                activation_bytes=self.rng.randint(1, ROOM[1]),
                outcome=outcome,
            )
        )
        self.free_s |= dict.fromkeys(team, end)
        return end

    def _team(self, degree: int) -> tuple[DeviceId, ...]:
        living = [d for d in self.free_s if d not in self.dead]
        by_node = [[d for d in living if int(d[1:]) // WIDTH == n] for n in range(NODES)]
        node = self.rng.choice([node for node in by_node if len(node) >= degree])
        return tuple(self.rng.sample(node, degree))


def history(seed: int, requests: int = 8) -> list[SimEvent]:
    """Return a valid history of some requests, in the order in which a simulator writes it."""
    played = History(random.Random(seed))
    played.begin()
    for number in range(requests):
        played.play(
            number, fate=played.rng.choice(["finish", "finish", "finish", "late", "reject"])
        )
        if number in (2, 5) and played.rng.random() < 0.5:
            played.lose()
    return played.events
