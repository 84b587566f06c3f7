"""Latents that outlive the engine: copies on disk of what diffuses have saved, for the next engine.

Of every diffuse that is paused, or saves as it goes, the newest latent is copied beside the work. A
copy is deleted when its diffuse is done or its request is over, and stays when the engine stops,
however that happens. It is found again by request, node, model weights and the versions of the
libraries that wrote it; whatever of these is another, the diffuse begins anew. An engine that takes
a request up renames what it finds, so one that has lost the request deletes nothing of it.
Torch-free: files are only moved.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import structlog

from engine.graph import NodeState
from engine.pipelines import PipelineSpec, diffuse_node
from engine.runs import RequestRun
from engine.types import GenerationRequest, HandoffRef, NodeId, RequestId, SavedLatent

_LONGEST_S = 24 * 3600.0
_SWEEP_S = 3600.0  # between two sweeps
_WRITERS = 2  # so that a slow disk takes no more of the threads that others need
_LIBRARIES = ("torch", "diffusers", "tridentserve")
_SUFFIX = ".latent"
Kept: TypeAlias = Mapping[NodeId, SavedLatent]
Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
log = structlog.get_logger(__name__)


class KeptLatents:
    """The files of one folder, readable by this user only; without a folder nothing is kept.

    There are no more of them than diffuses that have begun, and what engines that died have left
    within a day. Their names are `<what it is of>.<engine>.<step>.latent`.

    Args:
        spawn: runs the writing and deleting of files beside everything else.
    """

    def __init__(self, folder: Path | None, specs: Iterable[PipelineSpec], spawn: Spawn) -> None:
        """Make the folder, and delete what nobody came for in a day."""
        self._folder, self._spawn = folder, spawn
        self._engine, self._may_delete = uuid4().hex[:12], True
        self._held: dict[RequestId, dict[NodeId, SavedLatent]] = {}
        self._writing: dict[tuple[RequestId, NodeId], asyncio.Task[None]] = {}
        self._disk = asyncio.Semaphore(_WRITERS)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._swept_s = time.time()
        _sweep(folder)
        self._versions = {spec.id: _version_of(spec) for spec in specs}

    async def recall(self, request: GenerationRequest) -> Kept:
        """Take over what an engine before has kept of a request; the folder may be a slow one."""
        if self._folder is None or request.model not in self._versions:
            return {}
        return await asyncio.to_thread(self._take_over, request)

    def _take_over(self, request: GenerationRequest) -> dict[NodeId, SavedLatent]:
        assert self._folder is not None
        try:
            found = [file.name for file in self._folder.iterdir() if file.suffix == _SUFFIX]
        except OSError as error:
            log.warning("latents_not_looked_for", request=request.id, detail=str(error))
            return {}
        kept: dict[NodeId, SavedLatent] = {}
        for node in map(diffuse_node, range(request.n)):
            name = self._name(request, node)
            files = sorted((f for f in found if f.startswith(name)), key=_step_of)
            for older in files[:-1]:
                (self._folder / older).unlink(missing_ok=True)
            if files and (latent := self._claim(node, files[-1], name)) is not None:
                kept[node] = latent
        return kept

    def resume(self, run: RequestRun, kept: Kept) -> None:
        """Let a request that begins go on from what was recalled of it."""
        for node, latent in kept.items():
            if run.progress.states[node] is not NodeState.DONE:
                self._held.setdefault(run.request.id, {})[node] = latent
                run.go_on_from(node, latent)
                log.info("latent_recalled", request=run.request.id, node=node, step=latent.step)

    def _claim(self, node: NodeId, file: str, name: str) -> SavedLatent | None:
        """Take a file over; None if another engine was faster."""
        assert self._folder is not None
        step = _step_of(file)
        path = self._path(name, step)
        try:
            (self._folder / file).rename(path)
            os.utime(path)  # nobody may sweep it away before it is gone on from
            ref = HandoffRef(node, str(path), path.stat().st_size)
        except FileNotFoundError:
            return None
        return SavedLatent(step, ref)

    def follow(self, run: RequestRun) -> None:
        """Begin to bring the files of a request up to what it has saved now.

        What is saved while the latent before is still being written waits for that.
        """
        if self._folder is None:
            return
        held = self._held.setdefault(run.request.id, {})
        for node in held.keys() - run.saved.keys():
            self._delete(held.pop(node))
        for node, saved in run.saved.items():
            key, kept = (run.request.id, node), held.get(node)
            if key not in self._writing and (kept is None or kept.step < saved.step):
                self._writing[key] = self._spawn(self._keep(run, node, saved))
        if not held:
            del self._held[run.request.id]

    async def _keep(self, run: RequestRun, node: NodeId, saved: SavedLatent) -> None:
        """Copy a latent; what cannot be written will be done again."""
        request = run.request.id
        path = self._path(self._name(run.request, node), saved.step)
        try:
            async with self._disk:
                await self._sweep_if_due()
                await asyncio.to_thread(copy_whole, Path(saved.ref.path), path)
        except OSError as error:
            if run.saved.get(node) is saved:  # else it was freed, for a newer one
                log.warning("latent_not_kept", request=request, detail=str(error))
        else:
            held = self._held.setdefault(request, {})
            if (older := held.get(node)) is not None:
                self._delete(older)
            held[node] = SavedLatent(saved.step, HandoffRef(node, str(path), saved.ref.size_bytes))
            log.debug("latent_kept", request=request, node=node, step=saved.step)
        finally:
            del self._writing[request, node]
        if run.saved.get(node) is not saved:  # it has gone on, or is done
            self.follow(run)

    async def _sweep_if_due(self) -> None:
        assert self._folder is not None
        if time.time() > self._swept_s + _SWEEP_S:
            self._swept_s = time.time()
            await asyncio.to_thread(_sweep, self._folder)

    def _delete(self, kept: SavedLatent) -> None:
        if self._may_delete:
            self._spawn(_remove(Path(kept.ref.path)))

    async def settle(self, runs: Sequence[RequestRun]) -> None:
        """Leave the files to the next engine, once all that requests have saved is in them."""
        self.leave()
        for run in runs:
            self.follow(run)
        while self._writing:
            await asyncio.wait(self._writing.values())

    def leave(self) -> None:
        """Delete nothing any more: what ends now ends because the engine stops."""
        self._may_delete = False

    def freeing(self, free: Callable[[HandoffRef], None]) -> Callable[[HandoffRef], None]:
        """Return what lets go of a hand-off: by `free`, unless it is one of these files."""

        def release(ref: HandoffRef) -> None:
            if self._folder is None or Path(ref.path).parent != self._folder:
                free(ref)

        return release

    def _name(self, request: GenerationRequest, node: NodeId) -> str:
        """Return what the names of a node's files begin with."""
        of = "\n".join([request.id, node, self._versions[request.model]])
        return f"{hashlib.sha256(of.encode()).hexdigest()[:32]}."

    def _path(self, name: str, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}{self._engine}.{step}{_SUFFIX}"


def _step_of(file: str) -> int:
    return int(file.removesuffix(_SUFFIX).rpartition(".")[2])


def _sweep(folder: Path) -> None:
    """Delete what nobody came for in a day; other engines may take or sweep files meanwhile."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < time.time() - _LONGEST_S:
                file.unlink()


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that `target` is whole or not there; raises `OSError`, and then leaves nothing."""
    half = target.with_suffix(".half")  # a name that is never found, until it is whole
    try:
        shutil.copyfile(source, half)
        half.chmod(0o600)
        with half.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave a whole name on half a file
        half.rename(target)
    except OSError:
        half.unlink(missing_ok=True)
        raise


async def _remove(path: Path) -> None:
    try:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    except OSError as error:
        log.warning("latent_not_deleted", detail=str(error))  # it is swept in a day


def _version_of(spec: PipelineSpec) -> str:
    """Return what must be the same for a latent to be gone on from: weights and libraries."""
    folder = Path(spec.folder)
    weights = [(f.relative_to(folder), f.stat()) for f in sorted(folder.rglob("*.safetensors"))]
    files = [f"{name} {seen.st_size} {seen.st_mtime_ns}" for name, seen in weights]
    return "\n".join([*files, *map(_installed, _LIBRARIES)])


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
