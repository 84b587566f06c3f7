"""An engine that draws solid colours at once, and does as a test tells it."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import zlib
from collections.abc import Mapping

import msgspec

from engine import (
    ALONE,
    Along,
    Artifact,
    GenerationRequest,
    GenerationResult,
    MediaFormat,
    Modality,
    ModelId,
    PipelineSpec,
    Preview,
    RequestId,
    Shape,
    StageKind,
    StageTiming,
    Variant,
)
from engine.journal import Journal
from engine.pipelines import Limits
from engine.types import DeviceId, HandoffRef, NodeId
from gateway.jobs.record import StageDecision


def spec_of(name: str = "shapes") -> PipelineSpec:
    """Return a small model: sizes in steps of 16 up to 512, eight steps by default."""
    return PipelineSpec(
        modality=Modality.IMAGE,
        default_fps=8,
        id=ModelId(name),
        folder=f"/models/{name}",
        family="flux",
        weight_bytes=dict.fromkeys(StageKind, 1000),
        size_multiple_px=16,
        max_side_px=512,
        default_shape=Shape(64, 48),
        default_steps=8,
        default_guidance=3.5,
        uses_negative_prompt=False,
        limits=Limits(max_steps=10),
        created_s=1_700_000_000,
    )


def video_spec_of(name: str = "motion") -> PipelineSpec:
    """Return a small video model: 16 frames at 8 per second by default, 32 frames at most."""
    return msgspec.structs.replace(
        spec_of(name),
        modality=Modality.VIDEO,
        family="animatediff",
        folder=f"/models/{name}",
        default_shape=Shape(64, 48, 16),
        uses_negative_prompt=True,
        limits=Limits(max_steps=10, max_frames=32),
    )


class FakeEngine:
    """An `EngineClient` without an engine.

    Attributes:
        requests: what it was asked for, in order; `files` came along with each.
        cancelled: ids of requests whose caller gave up.
        gate: requests wait here; open from the start.
        failure: raised instead of an answer.
        is_down: whether the engine has stopped and cannot be revived.
        obstacles: what `readiness` says.
        noticed: what `notices` says.
        is_sure: whether it says that it knows what requests take.
        share: what `progress` says of every request.
        decisions: what `explain` says of every request.
        hand_offs: stages that a request finishes before it waits at the gate, and their outputs.
        resumed: which stages each request brought along finished.
    """

    def __init__(self, *specs: PipelineSpec) -> None:
        """Serve `specs`, or one small model."""
        self._specs = {spec.id: spec for spec in specs or (spec_of(),)}
        self.requests: list[GenerationRequest] = []
        self.files: list[dict[str, bytes]] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.is_down = False
        self.failure: Exception | None = None
        self.start_failure: Exception | None = None
        self.obstacles: tuple[str, ...] = ()
        self.noticed: tuple[str, ...] = ()
        self.share = 0.0
        self.is_sure = True
        self.decisions: tuple[StageDecision, ...] = ()
        self.hand_offs: dict[StageKind, HandoffRef] = {}
        self.resumed: list[tuple[NodeId, ...]] = []
        self.closed = self.suspended = False

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """Models by name."""
        return self._specs

    def latency_s(self, request: GenerationRequest) -> float:
        """One second per step."""
        return float(request.steps)

    @property
    def devices(self) -> int:
        """One device."""
        return 1

    def work_s(self, request: GenerationRequest) -> float:
        """As much as the latency, for each output."""
        return request.n * self.latency_s(request)

    def knows(self, request: GenerationRequest) -> bool:
        """As the test says."""
        del request
        return self.is_sure

    def learnt(self) -> bytes:
        """Nothing."""
        return b"[]"

    async def start(self) -> None:
        """Start, or fail as told."""
        if self.start_failure is not None:
            raise self.start_failure

    def explain(self, request: RequestId) -> tuple[StageDecision, ...]:
        """What the test says."""
        return self.decisions if any(known.id == request for known in self.requests) else ()

    async def generate(
        self, request: GenerationRequest, journal: Journal, along: Along = ALONE
    ) -> GenerationResult:
        """Show previews, wait at the gate, then fail or draw."""
        self.requests.append(request)
        self.resumed.append(tuple(stage.node for stage in journal.finished))
        self.files.append(dict(along.files))
        for number in range(request.previews if along.show else 0):
            for index in range(request.n):
                assert along.show is not None
                along.show(Preview(number, _artifact(request, index, f"preview {number}")))
        self.asked.set()
        for timing in _timeline(request):
            if (output := self.hand_offs.get(timing.stage)) is not None:
                journal.stage_finished(timing, output, None)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.failure is not None:
            raise self.failure
        artifacts = tuple(_artifact(request, index) for index in range(request.n))
        return GenerationResult(artifacts, _timeline(request))

    async def revive(self) -> bool:
        """Stay as `is_down` says."""
        return not self.is_down

    def progress(self, request: RequestId) -> float:
        """Return what the test says, for requests that were made."""
        return self.share if any(known.id == request for known in self.requests) else 0.0

    def readiness(self) -> tuple[str, ...]:
        """Return what the test says."""
        return self.obstacles

    def notices(self) -> tuple[str, ...]:
        """Return what the test says."""
        return self.noticed

    async def suspend(self, timeout_s: float) -> None:
        """Remember that it was asked."""
        del timeout_s
        self.suspended = True

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def _artifact(request: GenerationRequest, index: int, what: str = "") -> Artifact:
    seed = request.seed + index
    colour = hashlib.sha256(f"{what}{request.prompt}:{seed}".encode()).digest()[:3]
    if request.media is MediaFormat.MP4:
        content = mp4(request.shape, colour)
    else:
        content = png(request.shape.width_px, request.shape.height_px, colour)
    return Artifact(
        index=index,
        content=content,
        media_type=request.media.media_type,
        shape=request.shape,
        seed=seed,
        sha256=hashlib.sha256(content).hexdigest(),
        variants=_views() if request.media is MediaFormat.MP4 else (),
    )


def _views() -> tuple[Variant, ...]:
    return (
        Variant("thumbnail", b"RIFF....WEBP", "image/webp"),
        Variant("spritesheet", b"\xff\xd8\xff", "image/jpeg"),
    )


def _timeline(request: GenerationRequest) -> tuple[StageTiming, ...]:
    return tuple(
        StageTiming(
            node=NodeId(kind.value),
            stage=kind,
            device=DeviceId("cpu:0"),
            attempt=1,
            started_s=request.arrival_s,
            queue_wait_s=0.001,
            load_s=0.01,
            run_s=0.1,
        )
        for kind in StageKind
    )


def mp4(shape: Shape, colour: bytes) -> bytes:
    """Return what looks like an MP4 file from afar: its boxes, with the shape and a colour."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + kind + body

    header = struct.pack(">III", shape.width_px, shape.height_px, shape.frames)
    return (
        box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
        + box(b"moov", header)
        + box(b"mdat", colour * shape.frames)
    )


def mp4_shape(content: bytes) -> Shape:
    """Return the shape that a file made by `mp4` tells of."""
    assert content[4:8] == b"ftyp"
    start = content.index(b"moov") + 4
    return Shape(*struct.unpack(">III", content[start : start + 12]))


def png(width: int, height: int, colour: bytes) -> bytes:
    """Return a PNG file of one RGB colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + colour * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG file."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return int(width), int(height)
