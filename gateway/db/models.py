"""Tables. Rows stay inside the modules that read and write them; others get frozen records.

Requests, errors and timelines are msgspec JSON in text columns: they are read whole or not at all.
Times are Unix seconds of the clock that wrote them; processes on several machines need clocks that
agree to a second or so.
"""

from __future__ import annotations

from uuid import UUID

from advanced_alchemy.base import DefaultBase, UUIDv7AuditBase
from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship


class ArtifactRow(UUIDv7AuditBase):
    """One published output of a job; `index_in_job` orders the outputs."""

    __tablename__ = "artifact"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    tenant: Mapped[str] = mapped_column(String(64))
    index_in_job: Mapped[int]
    blob: Mapped[str] = mapped_column(String(255))
    media_type: Mapped[str] = mapped_column(String(64))
    width_px: Mapped[int]
    height_px: Mapped[int]
    size_bytes: Mapped[int]
    seed: Mapped[str] = mapped_column(String(20))  # a seed can exceed SQL's signed 64 bits
    sha256: Mapped[str] = mapped_column(String(64))


class JobRow(UUIDv7AuditBase):
    """One job. `lease_owner` and `lease_until_s` say which runner holds it, and until when.

    `progress` is in percent of the denoise steps and never falls. A row with `deleted_s` is gone
    for its owner; it stays for whoever ran it. A new column needs a migration.

    Attributes:
        expires_at_s: when a waiting job is given up; of one that is over, when its files are removed.
        predicted_s, work_s: what the cost model expected at admission: seconds alone on idle
            devices, and device-seconds.
        waiters: callers who wait for the answer; 0 if nobody does, as for videos.
        idempotency_key: digest of the caller's key and the route; unique within a tenant.
        fingerprint: digest of route and body; `retry_count` is the highest that came with it.
        schedule: why the scheduler did what it did, last word per stage.
        checkpoint: outputs of finished stages, for whoever runs the job after its holder died.
        content_removed_s: when its artifacts were removed because they were kept long enough.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_queue", "status", "deadline_s"),
        Index("ix_job_tenant", "tenant", "id"),
        Index("ix_job_list", "tenant", "modality", "id"),
        Index("ix_job_state", "tenant", "status", "id"),
        Index("ix_job_finished", "status", "finished_s"),
        Index("ix_job_expiry", "status", "expires_at_s"),
        Index("ix_job_content", "content_removed_s", "expires_at_s"),
        Index("ix_job_fingerprint", "tenant", "fingerprint"),
        Index("uq_job_idempotency_key", "tenant", "idempotency_key", unique=True),
    )

    tenant: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255))
    modality: Mapped[str] = mapped_column(String(8), server_default="image")
    status: Mapped[str] = mapped_column(String(16))
    request: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(64))
    deadline_s: Mapped[float]
    expires_at_s: Mapped[float]
    started_s: Mapped[float | None]
    finished_s: Mapped[float | None]
    deleted_s: Mapped[float | None]
    progress: Mapped[int] = mapped_column(default=0, server_default="0")
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until_s: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)
    timeline: Mapped[str | None] = mapped_column(Text)
    predicted_s: Mapped[float | None]
    work_s: Mapped[float | None]
    waiters: Mapped[int] = mapped_column(default=0, server_default="0")
    idempotency_key: Mapped[str | None] = mapped_column(String(64))
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    retry_count: Mapped[int] = mapped_column(default=0, server_default="0")
    schedule: Mapped[str | None] = mapped_column(Text)
    checkpoint: Mapped[str | None] = mapped_column(Text)
    content_removed_s: Mapped[float | None]
    artifacts: Mapped[list[ArtifactRow]] = relationship(order_by=ArtifactRow.index_in_job)


class EngineRow(DefaultBase):
    """An engine process that leases jobs: what it serves, and when it was last heard of.

    Attributes:
        models: `PipelineSpec`s, so that gateways without model folders know what can be asked for.
        learnt: what its cost model has learnt, so that gateways predict as it would.
        reasons: why a request would not succeed there now; an empty list if it would.
    """

    __tablename__ = "engine"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    seen_s: Mapped[float]
    devices: Mapped[int]
    models: Mapped[str] = mapped_column(Text)
    learnt: Mapped[str] = mapped_column(Text)
    reasons: Mapped[str] = mapped_column(Text)


class ApiKeyRow(UUIDv7AuditBase):
    """An API key: what a client sends is not here, only its SHA-256 and its last characters."""

    __tablename__ = "api_key"
    __table_args__ = (Index("uq_api_key_digest", "digest", unique=True),)

    tenant: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    hint: Mapped[str] = mapped_column(String(8))
    created_s: Mapped[float]
    revoked_s: Mapped[float | None]


class SecretRow(DefaultBase):
    """A secret that all processes share, such as the one that signs links; hex digits."""

    __tablename__ = "secret"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(128))
