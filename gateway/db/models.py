"""Tables. Rows stay inside jobs/store.py and jobs/leases.py; everyone else gets frozen records.

Requests, errors and timelines are msgspec JSON in text columns: they are read whole or not at all.
"""

from __future__ import annotations

from uuid import UUID

from advanced_alchemy.base import UUIDv7AuditBase
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
    """

    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_queue", "status", "deadline_s"),
        Index("ix_job_tenant", "tenant", "id"),
        Index("ix_job_list", "tenant", "modality", "id"),
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
    artifacts: Mapped[list[ArtifactRow]] = relationship(
        order_by=ArtifactRow.index_in_job, lazy="selectin"
    )
