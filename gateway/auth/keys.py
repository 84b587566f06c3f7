"""API keys: parsed from `tenant:key` lists, kept as SHA-256 digests, compared in constant time.

A slow hash would be wrong here: keys are random, and the digest is taken on every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

import msgspec

from gateway.auth.principal import DEFAULT_TENANT, Principal, TenantId

OPEN_MODE: Final = (
    "No API key is set: every program on this machine may use this server, as tenant 'default'. "
    "Make a key with: trident keys create --tenant NAME"
)
MIN_KEY_LENGTH: Final = 8
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHOWN: Final = 4


class ApiKey(msgspec.Struct, frozen=True):
    """One accepted key; what a client sends is not in it and cannot be printed from it."""

    tenant: TenantId
    digest: bytes


class KeyRing(msgspec.Struct, frozen=True):
    """All accepted keys; an empty ring means open mode."""

    keys: tuple[ApiKey, ...] = ()

    def __bool__(self) -> bool:
        """Return whether any key is set."""
        return bool(self.keys)

    def __repr__(self) -> str:
        """Say how many keys there are and nothing else."""
        return f"KeyRing({len(self.keys)} keys)"

    def principal(self, key: str) -> Principal | None:
        """Return whom `key` belongs to; looks at every key, so timing tells nothing."""
        digest = digest_of(key)
        found: Principal | None = None
        for known in self.keys:
            if hmac.compare_digest(known.digest, digest):
                found = Principal(known.tenant)
        return found


def digest_of(key: str) -> bytes:
    """Return the digest under which a key is remembered."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def parse_keys(text: str) -> KeyRing:
    """Read `tenant:key` or bare `key` entries, separated by commas or lines; `#` starts a comment.

    Raises:
        ValueError: an entry is malformed or given twice; the message never quotes a key.
    """
    lines = (line.split("#", 1)[0] for line in text.splitlines())
    entries = [part.strip() for line in lines for part in line.split(",") if part.strip()]
    keys = tuple(_parse_key(entry, number) for number, entry in enumerate(entries, start=1))
    if len({key.digest for key in keys}) < len(keys):
        message = "the same key is listed twice; give each tenant a key of its own."
        raise ValueError(message)
    return KeyRing(keys)


def parse_tenant(text: str) -> TenantId:
    """Return a tenant's name.

    Raises:
        ValueError: it is malformed.
    """
    if not _TENANT.fullmatch(text):
        message = f"{text!r} is no name of a tenant; use up to 64 letters, digits, '_', '.', '-'."
        raise ValueError(message)
    return TenantId(text)


def _parse_key(entry: str, number: int) -> ApiKey:
    tenant, colon, key = entry.rpartition(":")
    if colon and not _TENANT.fullmatch(tenant):
        message = f"entry {number} names a malformed tenant; use letters, digits, '_', '.', '-'."
        raise ValueError(message)
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        message = (
            f"entry {number} has a key that is too short or not printable ASCII; use at least "
            f"{MIN_KEY_LENGTH} characters without spaces."
        )
        raise ValueError(message)
    return ApiKey(TenantId(tenant) if colon else DEFAULT_TENANT, digest_of(key))


def mask(key: str) -> str:
    """Return a form of a rejected key that may appear in an answer: its last characters only."""
    if len(key) <= 2 * _SHOWN:
        return "*" * len(key)
    return f"{'*' * 8}{key[-_SHOWN:]}"
