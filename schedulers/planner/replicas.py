"""Request classes with their prices, and the virtual replica that each of them needs.

A virtual replica (VR) is a set of devices that together hold encode (E), diffuse (D) and decode
(C). The *primary* device type holds D; what it lacks lies on *auxiliary* devices. The four VRs
are ordered by the traffic between devices, and a class uses the first that memory allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

import msgspec

from engine.types import GenerationRequest, ModelId, RequestId, StageKey, StageKind
from schedulers.planner.demand import ClassDemand, Demand
from schedulers.planner.ports import StageCost

Role = frozenset[StageKey]
E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE


class VirtualReplica(IntEnum):
    """The four ways to spread E, D and C, from no traffic between devices to most."""

    V0 = 0
    V1 = 1
    V2 = 2
    V3 = 3

    @property
    def primary(self) -> frozenset[StageKind]:
        """Stages of the device type that diffuses."""
        return _PRIMARIES[self]

    def stages(self, model: ModelId) -> Role:
        """Return the primary's stages of one model."""
        return frozenset(StageKey(model, kind) for kind in self.primary)


_PRIMARIES = {
    VirtualReplica.V0: frozenset({E, D, C}),
    VirtualReplica.V1: frozenset({D, C}),
    VirtualReplica.V2: frozenset({E, D}),
    VirtualReplica.V3: frozenset({D}),
}


class ClassLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One class of requests with what its stages take.

    `diffuse_s` and `diffuse_bytes` have only the degrees that the class may use at all; encode
    and decode run on one device.
    """

    demand: ClassDemand
    encode_s: float
    decode_s: float
    encode_bytes: int
    decode_bytes: int
    diffuse_s: Mapping[int, float]
    diffuse_bytes: Mapping[int, int]

    @property
    def model(self) -> ModelId:
        """The model that is asked for."""
        return self.demand.model

    @property
    def rate_per_s(self) -> float:
        """Requests per second."""
        return self.demand.rate_per_s

    def stage(self, kind: StageKind) -> StageKey:
        """Return one of the model's stages."""
        return StageKey(self.model, kind)

    def seconds(self, kind: StageKind) -> float:
        """Return the time of encode or decode."""
        return self.encode_s if kind is E else self.decode_s

    def bytes_of(self, kind: StageKind, degree: int) -> int:
        """Return activation bytes per device; `degree` matters to diffuse only."""
        if kind is D:
            return self.diffuse_bytes[degree]
        return self.encode_bytes if kind is E else self.decode_bytes

    def diffuse_gpu_s(self, least: int) -> float:
        """Return device-seconds of diffuse at the cheapest degree of at least `least`."""
        return min(k * seconds for k, seconds in self.diffuse_s.items() if k >= least)


class Need(msgspec.Struct, frozen=True):
    """What a class needs of a cluster: a virtual replica and a degree at which it fits."""

    replica: VirtualReplica
    degree: int


class Wanted(msgspec.Struct, frozen=True):
    """A class of requests that can be served, with what it needs."""

    load: ClassLoad
    need: Need

    @property
    def work(self) -> float:
        """Diffuse work that comes in, in devices: rate times device-seconds."""
        return self.load.rate_per_s * self.load.diffuse_gpu_s(self.need.degree)

    def work_of(self, kind: StageKind) -> float:
        """Encode or decode work that comes in, in devices."""
        return self.load.rate_per_s * self.load.seconds(kind)


class Memory(msgspec.Struct, frozen=True):
    """What limits a class: weights, the smallest device's memory, the largest node.

    On devices of a `swapped` role stages evict each other, so each has the device to itself.
    """

    weight_bytes: Mapping[StageKey, int]
    capacity_bytes: int
    widest: int
    swapped: frozenset[Role] = frozenset()

    def of(self, role: Role) -> int:
        """Return the weight bytes of a role."""
        return sum(self.weight_bytes[stage] for stage in role)

    def beside(self, stage: StageKey, role: Role) -> int:
        """Return bytes left for activations of a stage on a device of this role."""
        held = frozenset({stage}) if role in self.swapped else role
        return self.capacity_bytes - self.of(held)


def priced(entry: ClassDemand, cost: StageCost) -> ClassLoad:
    """Return a class with its prices."""
    request = typical_request(entry)
    least = cost.min_degree(entry.model, entry.shape)
    degrees = [k for k in cost.degrees(entry.model) if k >= least]
    stage = {kind: StageKey(entry.model, kind) for kind in StageKind}
    diffuse = {k: cost.estimate(stage[D], request, degree=k) for k in degrees}
    encode, decode = cost.estimate(stage[E], request), cost.estimate(stage[C], request)
    return ClassLoad(
        demand=entry,
        encode_s=encode.duration_s,
        decode_s=decode.duration_s,
        encode_bytes=encode.activation_bytes,
        decode_bytes=decode.activation_bytes,
        diffuse_s={k: estimate.duration_s for k, estimate in diffuse.items()},
        diffuse_bytes={k: estimate.activation_bytes for k, estimate in diffuse.items()},
    )


def typical_request(entry: ClassDemand) -> GenerationRequest:
    """Return a request that stands for its class."""
    return GenerationRequest(
        id=RequestId("typical"),
        model=entry.model,
        prompt="",
        shape=entry.shape,
        steps=entry.steps,
        guidance_scale=1.0,
        seed=0,
        arrival_s=0.0,
        deadline_s=0.0,
    )


def price_all(demand: Demand, cost: StageCost) -> tuple[ClassLoad, ...]:
    """Return all classes of a demand with their prices."""
    return tuple(priced(entry, cost) for entry in demand.classes)


def least_degree(load: ClassLoad, role: Role, memory: Memory) -> int | None:
    """Return the least degree at which a device with all of `role` has room for the class."""
    weights = memory.of(role)
    for degree in sorted(load.diffuse_s):
        peak = max(load.bytes_of(stage.kind, degree) for stage in role if stage.model == load.model)
        if degree <= memory.widest and weights + peak <= memory.capacity_bytes:
            return degree
    return None


def opt_vr(load: ClassLoad, memory: Memory, *, faithful: bool = False) -> Need | None:
    """Return the first virtual replica that memory allows, None if there is none.

    Repair of the paper's rule: a replica that fits only at a higher degree than a later one needs
    is passed over, since milliseconds of hand-off are no reason to tie up twice the devices.
    """
    fits = [
        Need(replica, degree)
        for replica in VirtualReplica
        if (degree := least_degree(load, replica.stages(load.model), memory)) is not None
        and _auxiliaries_fit(load, replica, memory)
    ]
    if not fits:
        return None
    return fits[0] if faithful else min(fits, key=lambda need: (need.degree, need.replica))


def _auxiliaries_fit(load: ClassLoad, replica: VirtualReplica, memory: Memory) -> bool:
    return all(
        memory.of(frozenset({load.stage(kind)})) + load.bytes_of(kind, 1) <= memory.capacity_bytes
        for kind in (E, C)
        if kind not in replica.primary
    )


def wanted(
    loads: Sequence[ClassLoad], memory: Memory, *, faithful: bool = False
) -> tuple[Wanted, ...]:
    """Return every class that this cluster can serve at all, with what it needs."""
    found = [(load, opt_vr(load, memory, faithful=faithful)) for load in loads]
    return tuple(Wanted(load, need) for load, need in found if need is not None)
