"""What a stage is expected to cost before anything was observed: by a profile, or by a guess.

Both answer for a stage, a shape, a degree and a batch, without memory of earlier answers; the cost
model keeps them. The guess is analytic: 2 FLOPs per weight and token (Kaplan et al. 2020, eq. 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from engine.pipelines import PipelineSpec
from engine.types import ModelId, Shape, StageKey, StageKind
from schedulers.interpolation import Curve, Knot
from schedulers.profiles.schema import Entry, Profile, Provenance, StageProfile, upright, weakest

ASSUMED_FLOPS_PER_S = 5e10  # one CPU core, float32; only the ratios between stages matter at start
PIXELS_PER_TOKEN = 256  # a 16x16 patch, as in Flux and SD3
TEXT_TOKENS = 256
STAGE_OVERHEAD_S = 0.002
ACTIVATION_BYTES_PER_PIXEL = {StageKind.DIFFUSE: 256, StageKind.DECODE: 2048}
PICTURE_BYTES_PER_PIXEL = 64  # tiles that are decoded, and what they are blended to
ENCODE_ACTIVATION_BYTES = 16 << 20


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What one execution should take: `fixed_s + step_s * steps` seconds.

    `extrapolation` is 1.0 inside the profiled sizes, else the ratio of pixels to the nearest one.
    `degree` is the number of devices that the figures are of.
    """

    fixed_s: float = 0.0
    step_s: float = 0.0
    activation_bytes: int
    provenance: Provenance
    extrapolation: float = 1.0
    degree: int = 1

    def duration_s(self, steps: int) -> float:
        """Return the seconds of an execution of `steps` steps (encode and decode have none)."""
        return self.fixed_s + self.step_s * steps


def guess(spec: PipelineSpec, kind: StageKind, shape: Shape, batch: int) -> Expectation:
    """Expect by the model's size alone; more devices and batches bring nothing."""
    weights = spec.weight_bytes[kind] / 4
    tokens = TEXT_TOKENS if kind is StageKind.ENCODE else shape.pixels / PIXELS_PER_TOKEN
    pass_s = batch * 2 * weights * tokens / ASSUMED_FLOPS_PER_S
    activation = ENCODE_ACTIVATION_BYTES
    if kind is not StageKind.ENCODE:
        activation = shape.pixels * ACTIVATION_BYTES_PER_PIXEL[kind]
    if kind is StageKind.DECODE and spec.tiling is not None and spec.decode_parts(shape) > 1:
        tile = spec.tiling.tile_pixels * ACTIVATION_BYTES_PER_PIXEL[kind]
        activation = min(activation, tile + shape.pixels * PICTURE_BYTES_PER_PIXEL)
    diffuses = kind is StageKind.DIFFUSE
    return Expectation(
        fixed_s=STAGE_OVERHEAD_S + (0.0 if diffuses else pass_s),
        # The conditional and the unconditional branch of every step.
        step_s=2 * pass_s if diffuses else 0.0,
        activation_bytes=batch * activation,
        provenance=Provenance.ASSUMED,
    )


class _Point(msgspec.Struct, frozen=True):
    """A duration and its memory, at one degree and batch."""

    duration_s: float
    activation_bytes: float
    provenance: Provenance
    extrapolation: float = 1.0
    degree: int = 1


class StageTable:
    """The entries of one profiled stage, and the curves through them."""

    def __init__(self, stage: StageProfile, *, quadratic: bool) -> None:
        """Index entries by shape (None: any), degree and batch; diffuse durations are quadratic."""
        self._exact: dict[tuple[Shape | None, int, int], Entry] = {}
        groups: dict[tuple[int, int], list[Entry]] = {}
        for entry in stage.entries:
            shape = entry.shape and upright(entry.shape)
            self._exact[shape, entry.degree, entry.batch] = entry
            groups.setdefault((entry.degree, entry.batch), []).append(entry)
        self._curves = {key: _curves(group, quadratic=quadratic) for key, group in groups.items()}
        self._degrees = sorted({degree for degree, _ in groups})
        self._batches = {
            degree: sorted(b for d, b in groups if d == degree) for degree in self._degrees
        }

    def at(self, shape: Shape, degree: int, batch: int) -> _Point:
        """Return an exact entry, or what curves and neighbouring degrees and batches say.

        A degree that was not profiled is as fast as the largest profiled one below it.
        """
        known = max(d for d in self._degrees if d <= degree)
        point = self._batched(upright(shape), known, batch)
        point = msgspec.structs.replace(point, degree=known)
        return point if known == degree else _assumed(point)

    def _batched(self, shape: Shape, degree: int, batch: int) -> _Point:
        """Interpolate linearly between profiled batches; beyond the largest nothing is gained."""
        low = max(b for b in self._batches[degree] if b <= batch)
        point = self._sized(shape, degree, low)
        if low == batch:
            return point
        high = next((b for b in self._batches[degree] if b > batch), None)
        if high is None:
            return _assumed(_scaled(point, batch / low))
        share = (batch - low) / (high - low)
        return _mixed(point, self._sized(shape, degree, high), share)

    def _sized(self, shape: Shape, degree: int, batch: int) -> _Point:
        entry = self._exact.get((shape, degree, batch)) or self._exact.get((None, degree, batch))
        if entry is not None:
            return _Point(entry.duration_s, entry.peak_activation_bytes, entry.provenance)
        duration, memory = self._curves[degree, batch]
        return _Point(
            duration.at(shape.pixels),
            memory.at(shape.pixels),
            duration.provenance(shape.pixels),
            duration.extrapolation(shape.pixels),
        )


class ProfileTables:
    """Expectations of every model of a profile."""

    def __init__(self, profile: Profile) -> None:
        """Build the tables of all stages."""
        self._tables: Mapping[StageKey, StageTable] = {
            StageKey(ModelId(name), kind): StageTable(stage, quadratic=kind is StageKind.DIFFUSE)
            for name, model in profile.models.items()
            for kind, stage in model.stages.items()
        }

    def expect(self, stage: StageKey, shape: Shape, degree: int, batch: int) -> Expectation:
        """Return what the profile says of one execution."""
        point = self._tables[stage].at(shape, degree, batch)
        diffuses = stage.kind is StageKind.DIFFUSE
        return Expectation(
            fixed_s=0.0 if diffuses else point.duration_s,
            step_s=point.duration_s if diffuses else 0.0,
            activation_bytes=round(point.activation_bytes),
            provenance=point.provenance,
            extrapolation=point.extrapolation,
            degree=point.degree,
        )


def _curves(entries: Sequence[Entry], *, quadratic: bool) -> tuple[Curve, Curve]:
    """Return duration and memory over pixels; entries without a shape are never asked."""
    sized = [(entry.shape.pixels if entry.shape else 1, entry) for entry in entries]
    durations = [Knot(pixels, entry.duration_s, entry.provenance) for pixels, entry in sized]
    memory = [
        Knot(pixels, entry.peak_activation_bytes, entry.memory_provenance)
        for pixels, entry in sized
    ]
    return Curve(durations, quadratic=quadratic), Curve(memory, quadratic=False)


def _assumed(point: _Point) -> _Point:
    return msgspec.structs.replace(point, provenance=Provenance.ASSUMED)


def _scaled(point: _Point, factor: float) -> _Point:
    return msgspec.structs.replace(
        point,
        duration_s=point.duration_s * factor,
        activation_bytes=point.activation_bytes * factor,
    )


def _mixed(low: _Point, high: _Point, share: float) -> _Point:
    def between(a: float, b: float) -> float:
        return a + share * (b - a)

    return _Point(
        between(low.duration_s, high.duration_s),
        between(low.activation_bytes, high.activation_bytes),
        weakest(low.provenance, high.provenance),
        max(low.extrapolation, high.extrapolation, key=lambda ratio: max(ratio, 1 / ratio)),
    )
