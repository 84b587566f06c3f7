"""Finished files on their way to the caller: as bytes, or as links that need no key and expire."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from gateway.byte_ranges import ByteSpan, UnsatisfiableError, span_of
from gateway.errors import ForbiddenError, MissingError, RangeError
from gateway.jobs.outputs import variant_blob
from gateway.storage.blobs import BlobMissingError
from gateway.storage.signing import Verdict

if TYPE_CHECKING:
    from engine.ports import Clock
    from gateway.jobs.record import ArtifactId, JobId, StoredArtifact
    from gateway.jobs.store import JobStore
    from gateway.storage.blobs import BlobStore
    from gateway.storage.signing import SignedLink, Signer

View = Literal["thumbnail", "spritesheet"]
_VIEWS: Final[Mapping[View, str]] = {"thumbnail": "image/webp", "spritesheet": "image/jpeg"}
_REFUSALS: Final = {
    Verdict.FORGED: "This link is not valid; use the url of an answer exactly as it was given.",
    Verdict.EXPIRED: "This link has expired; generate the image again.",
}


class Bytes(msgspec.Struct, frozen=True):
    """What to send of a file: `content` is all of it if `span` is None."""

    content: bytes
    span: ByteSpan | None


class ArtifactService:
    """Reads artifacts, and signs and checks links to them."""

    def __init__(
        self, store: JobStore, blobs: BlobStore, signer: Signer, clock: Clock, *, url_ttl_s: int
    ) -> None:
        """Let links live for `url_ttl_s` seconds."""
        self._store = store
        self._blobs = blobs
        self._signer = signer
        self._clock = clock
        self._url_ttl_s = url_ttl_s

    def url(self, artifact: StoredArtifact, base_url: str) -> str:
        """Return a fresh link: the store's own if it makes such, else one to us at `base_url`."""
        direct = self._blobs.sign(artifact.blob, ttl_s=self._url_ttl_s)
        if direct is not None:
            return direct
        expires_s = int(self._clock.now()) + self._url_ttl_s
        return base_url + self._signer.sign(artifact.id, expires_s=expires_s).path

    async def follow(self, link: SignedLink) -> StoredArtifact:
        """Return what a link leads to; the signature is the authorisation.

        Raises:
            ForbiddenError: the link is forged or too old.
            MissingError: the artifact is gone.
        """
        verdict = self._signer.check(link, now_s=self._clock.now())
        if verdict is not Verdict.VALID:
            raise ForbiddenError(_REFUSALS[verdict], code=f"link_{verdict.name.lower()}")
        artifact = await self._store.artifact(link.artifact)
        if artifact is None:
            raise _missing(link.artifact)
        return artifact

    async def content(self, artifact: StoredArtifact) -> bytes:
        """Return an artifact's bytes.

        Raises:
            MissingError: somebody removed them.
        """
        return (await self.read(artifact, None)).content

    async def read(self, artifact: StoredArtifact, wanted: str | None) -> Bytes:
        """Return an artifact's bytes, or the part of them that a Range header wants.

        Raises:
            RangeError: the range lies outside the file.
            MissingError: somebody removed the bytes.
        """
        try:
            span = span_of(wanted, artifact.size_bytes)
            if span is None:
                return Bytes(await self._blobs.get(artifact.blob), None)
            part = await self._blobs.get_range(artifact.blob, start=span.start, end=span.end)
            return Bytes(part, span)
        except UnsatisfiableError as error:
            raise RangeError(str(error), size_bytes=artifact.size_bytes) from error
        except BlobMissingError as error:
            raise _missing(artifact.id) from error

    async def view(self, artifact: StoredArtifact, name: View) -> StoredArtifact:
        """Return another view of an artifact, to be read like one.

        Raises:
            MissingError: it was never made, or somebody removed it.
        """
        blob = variant_blob(artifact.blob, name)
        try:
            content = await self._blobs.get(blob)  # small: one picture
        except BlobMissingError as error:
            raise _missing(artifact.id) from error
        return msgspec.structs.replace(
            artifact,
            blob=blob,
            media_type=_VIEWS[name],
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    async def remove_all(self, job: JobId) -> None:
        """Remove the bytes of everything a job made, finished or not."""
        await self._blobs.delete_folder(job)

    def seconds_left(self, link: SignedLink) -> int:
        """Return how long a valid link will stay valid."""
        return max(0, link.expires_s - int(self._clock.now()))


def _missing(artifact: ArtifactId) -> MissingError:
    return MissingError(f"No such file: {artifact}. It may have been removed.")
