"""Replays requests against an engine in this process or a server by URL, and says what came of it.

Both tell the events that the simulator tells, so that one summary serves all three. It knows
neither the command line nor files.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx
import msgspec

from engine import (
    EngineError,
    GenerationRequest,
    MediaFormat,
    Modality,
    ModelId,
    RequestId,
    Shape,
    SystemClock,
)
from engine.pipelines import DEFAULT_FPS
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.traces import TraceRow

if TYPE_CHECKING:
    from engine import PipelineSpec
    from gateway.embedded import EmbeddedEngine

_PROMPT: Final = "a large red circle on a blue background, number"
_POLL_S: Final = 0.1
_READY_S: Final = 300.0
_UNLOADED_RUNS: Final = 3


class Served(msgspec.Struct, frozen=True):
    """What a request needs to know of its model."""

    id: ModelId
    modality: Modality
    guidance: float = 1.0  # a server uses its model's own
    fps: int = DEFAULT_FPS


class Target(Protocol):
    """What requests are sent to."""

    @property
    def models(self) -> Mapping[ModelId, Served]:
        """What it serves."""
        ...

    async def serve(self, request: GenerationRequest) -> None:
        """Return once the outputs are there; raise `TargetError` if there will be none."""
        ...


class TargetError(Exception):
    """A request ended without outputs; the message is the reason."""


class EngineTarget:
    """An engine in this process."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        """Send to `engine`, which is started."""
        self._engine = engine
        self.models: Mapping[ModelId, Served] = {
            spec.id: served(spec) for spec in engine.specs.values()
        }

    async def serve(self, request: GenerationRequest) -> None:
        """Run it."""
        try:
            await self._engine.generate(request)
        except EngineError as error:
            raise TargetError(str(error)) from error


def served(spec: PipelineSpec) -> Served:
    """Return what a request needs to know of a model."""
    return Served(spec.id, spec.modality, spec.default_guidance, spec.default_fps)


class ServerTarget:
    """A server by its URL; videos are polled."""

    def __init__(self, client: httpx.AsyncClient, models: Mapping[ModelId, Served]) -> None:
        """Send through `client`, which knows the server's address and key."""
        self._client, self.models = client, models

    @classmethod
    async def connect(cls, client: httpx.AsyncClient) -> ServerTarget:
        """Ask a server what it serves.

        Raises:
            TargetError: nobody answers, or not like a server of this project.
        """
        try:
            answer = await client.get("/v1/models")
            answer.raise_for_status()
            models = {
                ModelId(item["id"]): Served(ModelId(item["id"]), Modality(item["modality"]))
                for item in answer.json()["data"]
            }
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            message = f"{client.base_url} does not answer as a server of ours: {error!r}."
            raise TargetError(message) from error
        return cls(client, models)

    async def serve(self, request: GenerationRequest) -> None:
        """Ask for a picture and wait, or for a video and poll."""
        try:
            if self.models[request.model].modality is Modality.VIDEO:
                await self._film(request)
            else:
                await self._post("/v1/images/generations", _body(request))
        except httpx.HTTPError as error:
            raise TargetError(f"{type(error).__name__}: {error}") from error

    async def _film(self, request: GenerationRequest) -> None:
        video = await self._post("/v1/videos", {**_body(request), "frames": request.shape.frames})
        while video["status"] not in ("completed", "failed"):
            await asyncio.sleep(_POLL_S)
            answer = await self._client.get(f"/v1/videos/{video['id']}")
            answer.raise_for_status()
            video = answer.json()
        if video["status"] == "failed":
            raise TargetError(str(video.get("error")))

    async def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        answer = await self._client.post(path, json=body, timeout=None)
        if answer.is_error:
            raise TargetError(f"{answer.status_code}: {answer.text[:300]}")
        content: dict[str, Any] = answer.json()
        return content


def _body(request: GenerationRequest) -> dict[str, object]:
    return {
        "model": request.model,
        "prompt": request.prompt,
        "size": f"{request.shape.width_px}x{request.shape.height_px}",
        "seed": request.seed,
        "num_inference_steps": request.steps,
    }


class ToldTarget:
    """Tells of requests only: what a client sees of a server."""

    def __init__(self, target: Target, chronicle: Chronicle) -> None:
        """Tell of everything that goes to `target`."""
        self._target, self._chronicle = target, chronicle
        self.models = target.models

    async def serve(self, request: GenerationRequest) -> None:
        """Tell of its arrival and its end."""
        self._chronicle.arrived(request)
        try:
            await self._target.serve(request)
        except TargetError as error:
            self._chronicle.rejected(request, str(error))
            raise
        self._chronicle.finished(request)


def steady_rows(
    classes: Sequence[tuple[ModelId, Shape, int]], *, rate_rps: float, duration_s: float, seed: int
) -> list[TraceRow]:
    """Draw Poisson arrivals of classes (model, shape, steps), each as likely."""
    rng = random.Random(seed)  # noqa: S311 - no cryptography
    rows, at_s = [], rng.expovariate(rate_rps)
    while at_s < duration_s:
        model, shape, steps = rng.choice(classes)
        rows.append(
            TraceRow(
                arrival_s=at_s,
                height=shape.height_px,
                width=shape.width_px,
                frames=shape.frames,
                steps=steps,
                model=model,
            )
        )
        at_s += rng.expovariate(rate_rps)
    return rows


class Replay:
    """Sends the rows of a trace at their times.

    Args:
        reference_s: what a request takes alone; its deadline is a multiple of that.
    """

    def __init__(
        self,
        target: Target,
        rows: Sequence[TraceRow],
        *,
        slo_scale: float,
        reference_s: Callable[[GenerationRequest], float] | None,
        on_progress: Callable[[float], None] = lambda _now_s: None,
        name: str = "bench",
    ) -> None:
        """Prepare; nothing is sent. Requests are called `name` and a number."""
        self._name = name
        self._target, self._rows, self._slo_scale = target, rows, slo_scale
        self._reference_s, self._on_progress = reference_s, on_progress
        self._clock, self._unloaded_s = SystemClock(), dict[tuple[ModelId, Shape, int], float]()

    async def warm_up(self) -> None:
        """Send one request of each class alone, so that nothing is done for the first time later.

        Without a reference, what it takes then is the reference: the least of three.
        """
        for key, wish in self._classes():
            runs = 1 if self._reference_s is not None else _UNLOADED_RUNS
            for _ in range(runs):
                began = time.perf_counter()
                await self._target.serve(wish)
                taken_s = time.perf_counter() - began
                self._unloaded_s[key] = min(taken_s, self._unloaded_s.get(key, taken_s))

    def example(self) -> GenerationRequest:
        """Return the first request, as it would be sent now."""
        return self._wish(self._rows[0], "example", 0.0)

    def _classes(self) -> Iterator[tuple[tuple[ModelId, Shape, int], GenerationRequest]]:
        seen = set()
        for number, row in enumerate(self._rows):
            wish = self._wish(row, f"{self._name}-warm-up-{number}", self._clock.now() + 3600)
            key = (wish.model, wish.shape, wish.steps)
            if key not in seen:
                seen.add(key)
                yield key, wish

    async def run(self, target: Target | None = None) -> None:
        """Send every row at its time and wait for all of them to end; failures are in the events."""
        target, began_s = target or self._target, self._clock.now()
        sent = []
        for number, row in enumerate(self._rows):
            await asyncio.sleep(max(0.0, began_s + row.arrival_s - self._clock.now()))
            wish = self._due(self._wish(row, f"{self._name}-{number}", 0.0), row)
            sent.append(asyncio.create_task(_quietly(target, wish)))
            self._on_progress(row.arrival_s)
        await asyncio.gather(*sent)

    def _wish(self, row: TraceRow, name: str, deadline_s: float) -> GenerationRequest:
        model = self._target.models[row.model or next(iter(self._target.models))]
        return GenerationRequest(
            id=RequestId(name),
            model=model.id,
            prompt=f"{_PROMPT} {name}",
            shape=Shape(row.width, row.height, row.frames),
            steps=row.steps,
            guidance_scale=model.guidance,
            seed=0,
            arrival_s=self._clock.now(),
            deadline_s=deadline_s,
            media=MediaFormat.MP4 if model.modality is Modality.VIDEO else MediaFormat.PNG,
            fps=model.fps,
            tenant=row.tenant,
            priority=row.priority,
        )

    def _due(self, wish: GenerationRequest, row: TraceRow) -> GenerationRequest:
        if self._reference_s is not None:
            alone_s = self._reference_s(wish)
        else:
            alone_s = self._unloaded_s[wish.model, wish.shape, wish.steps]
        scale = self._slo_scale if row.slo_scale is None else row.slo_scale
        return msgspec.structs.replace(wish, deadline_s=wish.arrival_s + scale * alone_s)


async def _quietly(target: Target, wish: GenerationRequest) -> None:
    try:
        await target.serve(wish)
    except TargetError:
        return  # the event says why


async def until_ready(engine: EmbeddedEngine) -> None:
    """Return once an engine's workers hold what they should; raises TimeoutError."""
    async with asyncio.timeout(_READY_S):
        while engine.readiness():  # noqa: ASYNC110 - start-up is not measured
            await asyncio.sleep(_POLL_S)
