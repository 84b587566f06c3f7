"""The nouns of a profile: how long each stage of each model takes on one kind of device.

A profile is data. It knows neither requests nor policies; `schedulers.cost` turns it into
estimates, `schedulers.profiles.checks` reads it from a file. docs/profiles.md describes the file
field by field. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from engine.types import Modality, Shape, StageKind

SCHEMA = "tridentserve.profile/1"

Count = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
_HUGE = 1e18  # beyond every figure that means something; keeps infinities out
Duration = Annotated[float, msgspec.Meta(ge=0, le=_HUGE)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=_HUGE)]


class Provenance(StrEnum):
    """Where a figure comes from, from the strongest to the weakest."""

    MEASURED = "measured"
    PUBLISHED = "published"
    ASSUMED = "assumed"


STRENGTH = tuple(Provenance)  # strongest first


def weakest(*provenances: Provenance) -> Provenance:
    """Return what can be said of a figure that was computed from these."""
    return max(provenances, key=STRENGTH.index)


def upright(shape: Shape) -> Shape:
    """Return the shape as portrait: a picture and the same picture turned cost the same."""
    if shape.width_px <= shape.height_px:
        return shape
    return Shape(shape.height_px, shape.width_px, shape.frames)


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who published the published figures, and which of them."""

    citation: str
    gives: str


class NodeProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine: its devices and links.

    Attributes:
        memory_bytes: of one device, of which `reserve_bytes` are never given to stages.
        change_s: what it costs to pause, resume or regroup a team at a step boundary.
        provenance: of every other field but the last two.
        slowdown: times as long as executions take when 1, 2, .. devices work at once; measured,
            empty if devices do not hinder each other.
        launch_s: what a launch takes beside its stage where nothing is handed over; measured.
    """

    gpus: Count
    memory_bytes: Count
    reserve_bytes: Size
    host_to_device_bytes_per_s: Positive
    peer_bytes_per_s: Positive
    network_bytes_per_s: Positive
    change_s: Duration
    provenance: Mapping[str, Provenance]
    slowdown: tuple[Positive, ...] = ()
    launch_s: Duration = 0.0


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profiled execution of a stage.

    Attributes:
        shape: None if the size of the output does not matter (encode).
        degree: devices that share the execution.
        batch: requests in one execution.
        duration_s: of the whole batch; of a diffuse stage, one denoise step.
        peak_activation_bytes: on each device, beside the weights.
        provenance: of the duration.
        memory_provenance: of the activation bytes.
    """

    shape: Shape | None = None
    degree: Count = 1
    batch: Count = 1
    duration_s: Positive
    peak_activation_bytes: Size
    provenance: Provenance
    memory_provenance: Provenance


class StageProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage: its weights, what loading them costs, and its entries.

    `load_peer_s` is from a device of the same node that holds them.
    """

    weight_bytes: Size
    load_host_s: Duration
    load_peer_s: Duration
    provenance: Mapping[str, Provenance]
    entries: tuple[Entry, ...]


class EdgeProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hand-off into a stage; on one device it costs nothing.

    Its size is `fixed_bytes + bytes_per_pixel * pixels`, pixels counted over all frames.
    """

    fixed_bytes: Size
    bytes_per_pixel: Annotated[float, msgspec.Meta(ge=0, le=_HUGE)]
    within_node_s: Duration
    across_node_s: Duration
    provenance: Mapping[str, Provenance]


class DegreeFloor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From `from_pixels` pixels (over all frames) on, memory asks for at least `degree`."""

    from_pixels: Count
    degree: Count


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model.

    Attributes:
        edges: hand-offs by the stage that they go into: `diffuse` and `decode`.
        min_degrees: degrees that memory forces, by size; empty if it forces none.
        provenance: of `default_steps` and `min_degrees`.
        fingerprint: of the model folder that was measured (`engine.fingerprint`); None if nobody
            says which version the figures are of.
    """

    modality: Modality
    default_steps: Count
    stages: Mapping[StageKind, StageProfile]
    edges: Mapping[StageKind, EdgeProfile]
    provenance: Mapping[str, Provenance]
    min_degrees: tuple[DegreeFloor, ...] = ()
    fingerprint: str | None = None

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees at which the diffuse stage was profiled, ascending."""
        return tuple(sorted({entry.degree for entry in self.stages[StageKind.DIFFUSE].entries}))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Sizes at which the diffuse stage was profiled, by pixels."""
        entries = self.stages[StageKind.DIFFUSE].entries
        shapes = {entry.shape for entry in entries if entry.shape is not None}
        return tuple(sorted(shapes, key=lambda shape: (shape.pixels, shape)))

    @property
    def weight_bytes(self) -> int:
        """Weights of all three stages together."""
        return sum(stage.weight_bytes for stage in self.stages.values())

    def min_degree(self, shape: Shape) -> int:
        """Return the least degree at which memory holds this size."""
        floors = (f.degree for f in self.min_degrees if shape.pixels >= f.from_pixels)
        return max(floors, default=1)


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the measured figures came about.

    Attributes:
        machine: processor or GPU, cores, system.
        date: day and time of the last figure, ISO 8601.
        repetitions: most executions behind one figure, which is their median.
        load_average: runnable processes per minute while it was measured; other work slows it.
    """

    machine: str
    date: str
    repetitions: Count
    versions: Mapping[str, str]
    threads: Count
    load_average: float


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is known of some models on one kind of device."""

    schema: str = SCHEMA
    name: str
    device: str
    description: str = ""
    sources: tuple[Source, ...] = ()
    node: NodeProfile
    models: Mapping[str, ModelProfile]
    measurement: Measurement | None = None
