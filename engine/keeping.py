"""Latents of paused diffuses that outlive the engine: files that its successor goes on from.

A file is found again by request, node, model weights and the versions of the libraries that wrote
it; whatever of these is another, the diffuse begins anew. Torch-free: files are only moved.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

from engine.graph import NodeState
from engine.pipelines import PipelineSpec
from engine.runs import RequestRun
from engine.types import HandoffRef, ModelId, NodeId, SavedLatent

_LONGEST_S = 24 * 3600.0
_LIBRARIES = ("torch", "diffusers", "tridentserve")
_SUFFIX = ".latent"
log = structlog.get_logger(__name__)


class KeptLatents:
    """The files of one folder, readable by this user only; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        """Make the folder, and delete what nobody came for in a day."""
        self._folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in folder.iterdir():
            if file.stat().st_mtime < time.time() - _LONGEST_S:
                file.unlink(missing_ok=True)

    async def keep_all(
        self, specs: Mapping[ModelId, PipelineSpec], runs: Sequence[RequestRun]
    ) -> None:
        """Copy the latents of all requests."""
        for run in runs:
            await self._keep(specs[run.request.model], run)

    async def _keep(self, spec: PipelineSpec, run: RequestRun) -> None:
        """Copy the latents of a request; what cannot be written will be done again."""
        if self._folder is None or run.is_over:
            return
        for node, saved in list(run.saved.items()):
            path = self._folder / f"{_name(spec, run, node)}.{saved.step}{_SUFFIX}"
            try:
                await asyncio.to_thread(_copy, Path(saved.ref.path), path)
            except OSError as error:
                log.warning("latent_not_kept", request=run.request.id, detail=str(error))
            else:
                log.info("latent_kept", request=run.request.id, node=node, step=saved.step)

    def recall(self, spec: PipelineSpec, run: RequestRun) -> None:
        """Let a request that begins go on from what was kept of it."""
        if self._folder is None:
            return
        for node, state in run.progress.states.items():
            if state is NodeState.DONE:
                continue
            found = _furthest(self._folder, _name(spec, run, node))
            if found is not None:
                path, step = found
                ref = HandoffRef(node, str(path), path.stat().st_size)
                run.go_on_from(node, SavedLatent(step, ref))
                log.info("latent_recalled", request=run.request.id, node=node, step=step)

    def freeing(self, free: Callable[[HandoffRef], None]) -> Callable[[HandoffRef], None]:
        """Return what deletes a hand-off: by itself if it is one of these files, else by `free`."""

        def release(ref: HandoffRef) -> None:
            path = Path(ref.path)
            if self._folder is not None and path.parent == self._folder:
                path.unlink(missing_ok=True)
            else:
                free(ref)

        return release


def _furthest(folder: Path, name: str) -> tuple[Path, int] | None:
    """Return the file that came furthest, and its step; delete the others."""
    files = {int(file.suffixes[-2][1:]): file for file in folder.glob(f"{name}.*{_SUFFIX}")}
    for step in sorted(files)[:-1]:
        files[step].unlink(missing_ok=True)
    return (files[max(files)], max(files)) if files else None


def _copy(source: Path, target: Path) -> None:
    half = target.with_suffix(".half")  # a name that is never found, until it is whole
    shutil.copyfile(source, half)
    half.chmod(0o600)
    half.rename(target)


def _name(spec: PipelineSpec, run: RequestRun, node: NodeId) -> str:
    parts = [run.request.id, node, *_weights(Path(spec.folder)), *map(_version, _LIBRARIES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _weights(folder: Path) -> Iterable[str]:
    for file in sorted(folder.rglob("*.safetensors")):
        seen = file.stat()
        yield f"{file.relative_to(folder)} {seen.st_size} {seen.st_mtime_ns}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
