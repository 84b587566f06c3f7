"""A job's outputs on their way into the artifact store, and out of it if nobody may have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine import InvalidRequestError
from gateway.jobs.record import Job, StoredArtifact, new_artifact_id
from gateway.storage.blobs import BlobMissingError

if TYPE_CHECKING:
    from engine import Artifact, GenerationResult
    from gateway.jobs.patience import Patience
    from gateway.storage.blobs import BlobStore


VARIANTS = ("thumbnail", "spritesheet")


async def publish(
    blobs: BlobStore, job: Job, result: GenerationResult, patience: Patience
) -> list[StoredArtifact]:
    """Store the bytes before the row says so: the table never names a blob that is not there.

    Raises:
        StoreFailedError: the store took them not.
    """
    published = [_stored(job, artifact) for artifact in result.artifacts]
    await patience.bear(lambda: _put(blobs, published, result.artifacts))
    return published


async def _put(
    blobs: BlobStore, published: Sequence[StoredArtifact], artifacts: Sequence[Artifact]
) -> None:
    for stored, artifact in zip(published, artifacts, strict=True):
        await blobs.put(stored.blob, artifact.content)
        for variant in artifact.variants:
            await blobs.put(variant_blob(stored.blob, variant.name), variant.content)


async def source_files(blobs: BlobStore, job: Job) -> dict[str, bytes]:
    """Return the files that a job begins with, by the names that its request gives them.

    Raises:
        InvalidRequestError: one was removed.
    """
    source = job.request.source
    try:
        return {name: await blobs.get(name) for name in (source.files if source else ())}
    except BlobMissingError as error:
        message = "The picture that the request begins with was removed before it could run."
        raise InvalidRequestError(message, param="image") from error


async def withdraw(blobs: BlobStore, artifacts: Sequence[StoredArtifact]) -> None:
    """Remove what was published for a job that was deleted, or lost to another runner."""
    keys = [artifact.blob for artifact in artifacts]
    await blobs.delete([*keys, *(variant_blob(key, name) for key in keys for name in VARIANTS)])


def variant_blob(blob: str, name: str) -> str:
    """Return where another view of an artifact lies: beside it."""
    return f"{blob}.{name}"


def _stored(job: Job, artifact: Artifact) -> StoredArtifact:
    identifier = new_artifact_id()
    return StoredArtifact(
        id=identifier,
        index=artifact.index,
        blob=f"{job.id}/{identifier}.{job.request.media.value}",
        media_type=artifact.media_type,
        width_px=artifact.shape.width_px,
        height_px=artifact.shape.height_px,
        size_bytes=len(artifact.content),
        seed=artifact.seed,
        sha256=artifact.sha256,
    )
