"""Links to artifacts that need no key: an HMAC over the artifact's id and the time it expires.

The secret is shared by all gateways on one database, so any of them answers a link that another
one made; links survive a restart and differ between deployments.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from gateway.jobs.record import ArtifactId

_SECRET_BYTES: Final = 32


class Verdict(Enum):
    """What a signature is worth."""

    VALID = auto()
    FORGED = auto()
    EXPIRED = auto()


class SignedLink(msgspec.Struct, frozen=True):
    """A path with its proof; the caller puts a host in front."""

    artifact: ArtifactId
    expires_s: int
    signature: str

    @property
    def path(self) -> str:
        """Path and query under which `GET` answers the artifact's bytes."""
        query = f"expires={self.expires_s}&signature={self.signature}"
        return f"/v1/files/{self.artifact}/content?{query}"


class Signer:
    """Signs links and checks them."""

    def __init__(self, secret: bytes = b"") -> None:
        """Use `secret` as the HMAC key; without one, nothing works before `use`."""
        self._secret = secret

    def use(self, secret: bytes) -> None:
        """Take the secret that all gateways of the deployment share."""
        self._secret = secret

    def sign(self, artifact: ArtifactId, *, expires_s: int) -> SignedLink:
        """Return a link that is good until `expires_s` (Unix seconds)."""
        return SignedLink(artifact, expires_s, self._signature(artifact, expires_s))

    def check(self, link: SignedLink, *, now_s: float) -> Verdict:
        """Say what a link is worth now; a forged link is never called expired."""
        expected = self._signature(link.artifact, link.expires_s)
        if not hmac.compare_digest(expected.encode(), link.signature.encode()):
            return Verdict.FORGED
        return Verdict.VALID if now_s < link.expires_s else Verdict.EXPIRED

    def _signature(self, artifact: ArtifactId, expires_s: int) -> str:
        if not self._secret:
            message = "The signer was asked before it had its secret."
            raise RuntimeError(message)
        text = f"{artifact}:{expires_s}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def offered_secret(path: Path) -> bytes:
    """Return the secret in a file of an earlier version, or a new one.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return secrets.token_bytes(_SECRET_BYTES)
    secret = path.read_bytes()
    if len(secret) < _SECRET_BYTES:
        message = f"Signing secret {path} is damaged; delete it to make a new one (old links die)."
        raise ValueError(message)
    return secret
