"""Prompt embeddings kept across requests: a request whose prompt was encoded before skips the stage.

The cache holds hand-offs past their last consumer, up to a number of bytes, least recently used
out first. Only equal requests of one tenant share an entry, so that nobody can learn from the time
a request takes what others asked for. A key is a digest of all that encoding may read, taken from
the request by leaving out what it cannot read: a field that is new counts until it is named here.
Models are opened once in an engine's life, so the model's name stands for its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from engine.errors import LedgerError
from engine.graph import StageNode
from engine.types import (
    GenerationRequest,
    HandoffRef,
    MediaFormat,
    RequestId,
    Shape,
    StageKind,
    StageTask,
)

if TYPE_CHECKING:
    from engine.runs import RequestRun

_encoder = msgspec.msgpack.Encoder()


def embedding_key(request: GenerationRequest) -> bytes:
    """Return a digest that two requests share if and only if encoding reads the same of both."""
    guided = request.guidance_scale > 1  # how strongly is the denoiser's business
    read = msgspec.structs.replace(
        request,
        id=RequestId(""),
        shape=Shape(0, 0),
        steps=0,
        guidance_scale=float(guided),
        negative_prompt=request.negative_prompt if guided else None,
        seed=0,
        arrival_s=0.0,
        deadline_s=0.0,
        n=1,
        media=MediaFormat.PNG,
        compression=100,
        fps=8,
        priority=0,
        traceparent=None,
    )
    return hashlib.blake2b(_encoder.encode(read), digest_size=32).digest()


class _Entry:
    __slots__ = ("key", "ref", "users")

    def __init__(self, key: bytes, ref: HandoffRef) -> None:
        self.key: bytes | None = key  # None once it is out of the cache and only still in use
        self.ref, self.users = ref, 1


class EmbeddingCache:
    """Hand-offs of encode stages, each in use by some requests, by none, or on its way out.

    Attributes:
        hits, misses: requests admitted so far whose prompt was here, and was not.
        used_bytes: what the cache holds; what is on its way out counts no more.
    """

    def __init__(self, capacity_bytes: int, free: Callable[[HandoffRef], None]) -> None:
        """Begin empty; with a capacity of 0 it stays so. `free` deletes a hand-off."""
        self._capacity_bytes, self._free = capacity_bytes, free
        self._entries: dict[bytes, _Entry] = {}  # least recently used first
        self._by_path: dict[str, _Entry] = {}
        self.hits = self.misses = self.used_bytes = 0

    def recall(self, run: RequestRun) -> None:
        """Complete the encode of a request that begins, if its embeddings are here."""
        encode = _encode_of(run)
        if not self._capacity_bytes or encode is None:
            return
        entry = self._entries.pop(embedding_key(run.request), None)
        if entry is None:
            self.misses += 1
            return
        self.hits += 1
        assert entry.key is not None  # it is in the cache
        self._entries[entry.key] = entry
        entry.users += 1
        run.skip(encode.id, entry.ref)

    def holds(self, request: GenerationRequest) -> bool:
        """Return whether a request that came now would find its embeddings; counts nothing."""
        return bool(self._entries) and embedding_key(request) in self._entries

    def remember(self, task: StageTask, output: HandoffRef | None) -> None:
        """Keep what an encode has just made for its request."""
        if task.stage.kind is not StageKind.ENCODE or output is None:
            return
        key = embedding_key(task.request)
        if key in self._entries or output.size_bytes > self._capacity_bytes:
            return
        self._entries[key] = self._by_path[output.path] = _Entry(key, output)
        self.used_bytes += output.size_bytes
        while self.used_bytes > self._capacity_bytes:
            self._evict(next(iter(self._entries.values())))

    def release(self, ref: HandoffRef) -> None:
        """Let go of a hand-off for one request; free it unless it is kept or others use it."""
        entry = self._by_path.get(ref.path)
        if entry is None:
            self._free(ref)
            return
        entry.users -= 1
        self._free_if_unused(entry)

    def forget(self, ref: HandoffRef) -> None:
        """Keep no more what is gone: nobody may find it from now on."""
        entry = self._by_path.get(ref.path)
        if entry is not None and entry.key is not None:
            self._evict(entry)

    def clear(self) -> None:
        """Forget everything that no request uses now."""
        for entry in list(self._entries.values()):
            self._evict(entry)

    def _evict(self, entry: _Entry) -> None:
        assert entry.key is not None  # it is in the cache
        del self._entries[entry.key]
        entry.key = None
        self.used_bytes -= entry.ref.size_bytes
        self._free_if_unused(entry)

    def _free_if_unused(self, entry: _Entry) -> None:
        if entry.users == 0 and entry.key is None:
            del self._by_path[entry.ref.path]
            self._free(entry.ref)

    def check_integrity(self) -> None:
        """Raise `LedgerError` if sizes, users or names contradict each other."""
        kept = [entry for entry in self._by_path.values() if entry.key is not None]
        size_bytes = sum(entry.ref.size_bytes for entry in kept)
        least = [entry.users >= (entry.key is None) for entry in self._by_path.values()]
        same = {id(entry) for entry in kept} == {id(entry) for entry in self._entries.values()}
        if not all(least) or not same or size_bytes != self.used_bytes:
            message = f"Embedding cache is broken: {size_bytes} of {self.used_bytes} bytes."
            raise LedgerError(message)


def _encode_of(run: RequestRun) -> StageNode | None:
    """Return the encode that a request begins with."""
    nodes = run.progress.ready()
    return next((node for node in nodes if node.stage.kind is StageKind.ENCODE), None)
