"""Every switch and number of the dispatcher, so that the worth of each can be measured alone."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Knobs(msgspec.Struct, frozen=True, kw_only=True):
    """What the dispatcher may do, and how eagerly.

    Attributes:
        solver: `greedy` places in order, `ilp` solves the round as an integer program.
        background: requests that cannot be on time any more go behind all others.
        refuse: refuse those instead of serving them late.
        deadline_order: earliest deadline first; False: first come, first served.
        preempt: pause running diffuses at a step boundary for a request that would be late.
        demote: halve the team of a running diffuse rather than pause it, where that is enough.
        scale_up: give leftover devices to diffuses that gain from them.
        resize: let running diffuses grow, at a step boundary; else only those that just start.
        shrink: let running diffuses give back devices that they use wastefully while others wait.
        spill: decode on a primary device when the decode pool is behind.
        reserve: hold a node for a wide request (least degree >= 4) that finds no room.
        claim: who waits for one device counts as having it, for those that come after it.
        considered: most requests that one decision looks at; the least urgent wait for the next.
        elders_per_16_nodes: background requests older than `elder_age` references that go first.
        elder_age: multiples of a request's reference latency.
        least_gain: a degree counts only if its step takes less than this share of half of it.
        most_waste: while more requests wait than devices are idle, degrees that take more than
            this many times the device-seconds of the cheapest are off.
        scale_up_gain_s: a change of degree must save at least this many seconds.
        spill_wait: spill when the pool's wait exceeds this share of the decode itself.
        wait_guard: who waits for one device that comes with less to spare than this share of its
            fastest run lets others be paused now, and not when it would be late.
        attempts: preemptions that are thought through per decision.
        batch: most encodes in one launch.
        step_batch: most diffuses of different requests that share their denoise steps.
        decode_batch: most decodes of different requests in one launch.
        decode_degree: most devices that share out the frames or tiles of a decode.
        weights: share of the cluster per tenant, 1 if not named.
        fairness_half_life_s: how fast what a tenant has used is forgotten.
        prefetch: load the weights of stages that a busy device should hold beside what it runs.
        merge: stages of a request that would run on one device anyway become one launch.
    """

    solver: str = "greedy"
    background: bool = True
    refuse: bool = False
    deadline_order: bool = True
    preempt: bool = True
    demote: bool = False
    scale_up: bool = True
    resize: bool = True
    shrink: bool = False
    spill: bool = True
    reserve: bool = False
    claim: bool = True
    considered: int = 512
    elders_per_16_nodes: int = 0
    elder_age: float = 10.0
    least_gain: float = 0.93
    most_waste: float = 1.6
    scale_up_gain_s: float = 0.2
    spill_wait: float = 0.5
    wait_guard: float = 0.25
    attempts: int = 48
    batch: int = 8
    step_batch: int = 1
    decode_batch: int = 1
    decode_degree: int = 1
    weights: Mapping[str, float] = {}
    fairness_half_life_s: float = 600.0
    prefetch: bool = False
    merge: bool = False

    def __post_init__(self) -> None:
        """Refuse what would divide by zero or decide nothing."""
        least_one = {"batch": self.batch, "considered": self.considered}
        least_one |= {"step_batch": self.step_batch, "decode_degree": self.decode_degree}
        least_one["decode_batch"] = self.decode_batch
        wrong = [name for name, value in least_one.items() if value < 1]
        above = {"least_gain": self.least_gain, "fairness_half_life_s": self.fairness_half_life_s}
        above |= {f"weights.{tenant}": weight for tenant, weight in self.weights.items()}
        wrong += [name for name, value in above.items() if not value > 0]
        wrong += [] if self.most_waste >= 1 else ["most_waste"]
        if wrong:
            raise ValueError(f"{wrong[0]} is too small")


# On worker processes: no batches by default, since they change the last bits of results.
WORKERS = Knobs(batch=1, decode_degree=8, prefetch=True, merge=True)
