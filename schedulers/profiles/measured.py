"""From figures that were measured to a profile: medians, hand-offs, and a mark for each of them.

Pure: `gateway.profiler` measures, and keeps figures in a file of one JSON a line until all are
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import msgspec

from engine.pipelines import PipelineSpec
from engine.types import Shape, StageKind
from schedulers.expectations import guess
from schedulers.profiles.schema import (
    EdgeProfile,
    Entry,
    Measurement,
    ModelProfile,
    NodeProfile,
    Profile,
    Provenance,
    StageProfile,
    upright,
)

ASSUMED_NETWORK_BYTES_PER_S = 1.25e9  # 10 Gbit/s
_LEAST_S = 1e-9


class Figure(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="stage"):
    """One stage at one size, degree and batch; a sample for each execution.

    Attributes:
        run_s: of the whole stage; of a diffuse, one denoise step.
        arrival_s: what passed before its first step beyond the stage before: messages, reading.
        send_s: to write what the next stage reads, `output_bytes`.
        peak_bytes: most activations: of the device's allocator if `exact_peak`, else by how much
            the process grew; 0 where nobody can tell.
    """

    model: str
    stage: StageKind
    shape: Shape
    degree: int
    batch: int
    run_s: tuple[float, ...]
    arrival_s: tuple[float, ...]
    send_s: tuple[float, ...]
    output_bytes: int
    peak_bytes: int
    exact_peak: bool = False


class LoadFigure(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="load"):
    """Loads of one stage's weights: the first from its files, the others from the host's copy."""

    model: str
    stage: StageKind
    file_s: float
    host_s: tuple[float, ...]


class NodeFigure(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="node"):
    """What does not depend on the model.

    Attributes:
        change_s: seconds that a pause and a resume add to a diffuse.
        slowdown: times that executions take when 1, 2, .. devices work at once.
        launch_s: seconds that a launch takes beside its stage.
    """

    memory_bytes: int
    change_s: tuple[float, ...]
    slowdown: tuple[float, ...]
    launch_s: tuple[float, ...] = ()


Measured = Figure | LoadFigure | NodeFigure


def build_profile(
    figures: Iterable[Measured],
    specs: Sequence[PipelineSpec],
    *,
    device: str,
    devices: int,
    reserve_bytes: int,
    fingerprints: Mapping[str, str],
    measurement: Measurement,
) -> Profile:
    """Return the profile of everything that was measured; each model needs its three stages."""
    kept = tuple(figures)
    stages = [figure for figure in kept if isinstance(figure, Figure)]
    loads = {(f.model, f.stage): f for f in kept if isinstance(f, LoadFigure)}
    node = next(figure for figure in kept if isinstance(figure, NodeFigure))
    return Profile(
        name=f"measured-{device}",
        device=measurement.machine,
        description=(
            "Written by `trident profile`: medians of executions on this machine, by the code "
            "that serves."
        ),
        node=_node(node, loads.values(), specs, devices, reserve_bytes),
        models={
            spec.id: _model(
                spec,
                [figure for figure in stages if figure.model == spec.id],
                {kind: loads[spec.id, kind] for kind in StageKind},
                fingerprints[spec.id],
            )
            for spec in specs
        },
        measurement=measurement,
    )


def _node(
    node: NodeFigure,
    loads: Iterable[LoadFigure],
    specs: Sequence[PipelineSpec],
    devices: int,
    reserve_bytes: int,
) -> NodeProfile:
    weights = {
        (str(spec.id), kind): size for spec in specs for kind, size in spec.weight_bytes.items()
    }
    link = max(
        (weights[load.model, load.stage] / max(median(load.host_s), _LEAST_S) for load in loads),
        default=1.0,
    )
    measured = ("gpus", "memory_bytes", "host_to_device_bytes_per_s")
    return NodeProfile(
        gpus=devices,
        memory_bytes=node.memory_bytes,
        reserve_bytes=reserve_bytes,
        host_to_device_bytes_per_s=max(1.0, link),
        peer_bytes_per_s=max(1.0, link),
        network_bytes_per_s=ASSUMED_NETWORK_BYTES_PER_S,
        change_s=max(0.0, median(node.change_s)) if node.change_s else 0.0,
        slowdown=node.slowdown,
        launch_s=max(0.0, median(node.launch_s)) if node.launch_s else 0.0,
        provenance={
            **dict.fromkeys(measured, Provenance.MEASURED),
            "reserve_bytes": Provenance.ASSUMED,
            "peer_bytes_per_s": Provenance.ASSUMED,  # nothing is copied between devices yet
            "network_bytes_per_s": Provenance.ASSUMED,
            "change_s": Provenance.MEASURED if node.change_s else Provenance.ASSUMED,
        },
    )


def _model(
    spec: PipelineSpec,
    figures: Sequence[Figure],
    loads: Mapping[StageKind, LoadFigure],
    fingerprint: str,
) -> ModelProfile:
    by_stage = {kind: [f for f in figures if f.stage is kind] for kind in StageKind}
    return ModelProfile(
        modality=spec.modality,
        default_steps=spec.default_steps,
        stages={
            kind: StageProfile(
                weight_bytes=spec.weight_bytes[kind],
                load_host_s=median(loads[kind].host_s),
                load_peer_s=median(loads[kind].host_s),
                provenance={
                    "weight_bytes": Provenance.MEASURED,
                    "load_host_s": Provenance.MEASURED,
                    "load_peer_s": Provenance.ASSUMED,
                },
                entries=tuple(_entry(spec, figure) for figure in by_stage[kind]),
            )
            for kind in StageKind
        },
        edges={
            StageKind.DIFFUSE: _edge(by_stage[StageKind.ENCODE], by_stage[StageKind.DIFFUSE]),
            StageKind.DECODE: _edge(by_stage[StageKind.DIFFUSE], by_stage[StageKind.DECODE]),
        },
        provenance={
            "default_steps": Provenance.MEASURED,
            "min_degrees": Provenance.ASSUMED,  # memory decides at every launch
        },
        fingerprint=fingerprint,
    )


def _entry(spec: PipelineSpec, figure: Figure) -> Entry:
    """Return the entry; its bytes are guessed if nothing, or implausibly little, was measured.

    A CPU process keeps what it has freed, so that the growth of its memory shows too little.
    """
    sized = figure.stage is not StageKind.ENCODE
    likely = 0
    if not figure.exact_peak:
        likely = guess(spec, figure.stage, figure.shape, figure.batch).activation_bytes
    return Entry(
        shape=upright(figure.shape) if sized else None,
        degree=figure.degree,
        batch=figure.batch,
        duration_s=max(_LEAST_S, median(figure.run_s)),
        peak_activation_bytes=max(figure.peak_bytes, likely),
        provenance=Provenance.MEASURED,
        memory_provenance=(
            Provenance.MEASURED if figure.peak_bytes > likely else Provenance.ASSUMED
        ),
    )


def _edge(before: Sequence[Figure], after: Sequence[Figure]) -> EdgeProfile:
    """Return the hand-off between two stages: its size by a line through the sizes measured."""
    single = [figure for figure in before if figure.degree == figure.batch == 1]
    usual = [f for f in after if f.batch == 1 and (f.degree == 1 or f.stage is StageKind.DIFFUSE)]
    fixed, slope = _line([(f.shape.pixels, f.output_bytes) for f in single])
    seconds = median(s for figure in single for s in figure.send_s) + median(
        s for figure in usual for s in figure.arrival_s
    )
    travels_s = median(figure.output_bytes for figure in single) / ASSUMED_NETWORK_BYTES_PER_S
    return EdgeProfile(
        fixed_bytes=round(fixed),
        bytes_per_pixel=slope,
        within_node_s=seconds,
        across_node_s=seconds + travels_s,
        provenance={
            "fixed_bytes": Provenance.MEASURED,
            "bytes_per_pixel": Provenance.MEASURED,
            "within_node_s": Provenance.MEASURED,
            "across_node_s": Provenance.ASSUMED,
        },
    )


def _line(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return offset and slope, neither negative, through the smallest and the largest size."""
    (small, least), (large, most) = min(points), max(points)
    if large == small:
        return float(most), 0.0
    slope = max(0.0, (most - least) / (large - small))
    return max(0.0, least - slope * small), slope
