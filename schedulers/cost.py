"""A first cost model: an analytic guess per stage, corrected by what workers report.

Durations start from the model's size (2 FLOPs per weight and token, Kaplan et al. 2020, eq. 2.2)
and are scaled per model, stage and shape by a bounded running mean of measured over expected.
Measured profiles replace the guess when they exist.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.graph import StageNode
from engine.messages import StageReport
from engine.pipelines import PipelineSpec, build
from engine.types import GenerationRequest, ModelId, Shape, StageKey, StageKind, StageTask

ASSUMED_FLOPS_PER_S = 5e10  # one CPU core, float32; only the ratios between stages matter at start
PIXELS_PER_TOKEN = 256  # a 16x16 patch, as in Flux and SD3
TEXT_TOKENS = 256
STAGE_OVERHEAD_S = 0.002
ACTIVATION_BYTES_PER_PIXEL = {StageKind.DIFFUSE: 256, StageKind.DECODE: 2048}
ENCODE_ACTIVATION_BYTES = 16 << 20
_WEIGHT_OF_NEWEST = 0.3
_FACTOR_BOUNDS = (1e-3, 1e3)


class Estimate(msgspec.Struct, frozen=True):
    """What a task is expected to take; `measured` once a report of its class was seen."""

    duration_s: float
    activation_bytes: int
    measured: bool


class CostModel:
    """Expected durations and activation bytes of stage tasks at degree 1."""

    def __init__(self, specs: Sequence[PipelineSpec]) -> None:
        """Know the models' sizes and nothing of their speed."""
        self._specs: dict[ModelId, PipelineSpec] = {spec.id: spec for spec in specs}
        self._factors: dict[tuple[StageKey, Shape], float] = {}
        self._peaks: dict[tuple[StageKey, Shape], int] = {}

    def estimate(self, stage: StageKey, request: GenerationRequest) -> Estimate:
        """Return what `stage` of `request` should take on one device."""
        key = (stage, request.shape)
        guess_s = self._guess_s(stage, request)
        guessed_bytes = self._guessed_activation_bytes(stage.kind, request.shape)
        return Estimate(
            duration_s=guess_s * self._factors.get(key, 1.0),
            activation_bytes=self._peaks.get(key, guessed_bytes),
            measured=key in self._factors,
        )

    def latency_s(self, request: GenerationRequest) -> float:
        """Return the critical path of a request: what it takes on idle devices."""
        graph = build(self._specs[request.model], request)

        def duration_s(node: StageNode) -> float:
            return self.estimate(node.stage, request).duration_s

        return graph.critical_path(duration_s)

    def observe(self, task: StageTask, report: StageReport) -> None:
        """Learn from one execution; one outlier moves a factor by at most 30 %."""
        key = (task.stage, task.request.shape)
        low, high = _FACTOR_BOUNDS
        measured = report.run_s / self._guess_s(task.stage, task.request)
        bounded = min(high, max(low, measured))
        old = self._factors.get(key, bounded)
        self._factors[key] = old + _WEIGHT_OF_NEWEST * (bounded - old)
        if report.peak_memory_bytes:
            self._peaks[key] = max(self._peaks.get(key, 0), report.peak_memory_bytes)

    def _guess_s(self, stage: StageKey, request: GenerationRequest) -> float:
        weights = self._specs[stage.model].weight_bytes[stage.kind] / 4
        tokens = request.shape.pixels / PIXELS_PER_TOKEN
        if stage.kind is StageKind.ENCODE:
            tokens = TEXT_TOKENS
        if stage.kind is StageKind.DIFFUSE:
            tokens *= 2 * request.steps  # conditional and unconditional branch of every step
        return STAGE_OVERHEAD_S + 2 * weights * tokens / ASSUMED_FLOPS_PER_S

    @staticmethod
    def _guessed_activation_bytes(kind: StageKind, shape: Shape) -> int:
        if kind is StageKind.ENCODE:
            return ENCODE_ACTIVATION_BYTES
        return shape.pixels * ACTIVATION_BYTES_PER_PIXEL[kind]
