"""Several processes on one database: engines, keys, secrets, and what jobs say to all of them."""

from __future__ import annotations

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NEW = (
    "predicted_s",
    "work_s",
    "waiters",
    "idempotency_key",
    "fingerprint",
    "retry_count",
    "schedule",
    "checkpoint",
    "content_removed_s",
)


def upgrade() -> None:
    """Add columns and tables; rows that are there keep all they have."""
    for column in _job_columns():
        op.add_column("job", column)
    op.create_index("ix_job_finished", "job", ["status", "finished_s"])
    op.create_index("ix_job_fingerprint", "job", ["tenant", "fingerprint"])
    op.create_index("uq_job_idempotency_key", "job", ["tenant", "idempotency_key"], unique=True)
    op.create_table(
        "engine",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("seen_s", sa.Double(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("learnt", sa.Text(), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_engine"),
    )
    op.create_table(
        "api_key",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(8), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("revoked_s", sa.Double()),
        sa.Column("sa_orm_sentinel", sa.Integer()),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("updated_at", DateTimeUTC(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
    )
    op.create_index("uq_api_key_digest", "api_key", ["digest"], unique=True)
    op.create_table(
        "secret",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secret"),
    )


def downgrade() -> None:
    """Remove what `upgrade` added."""
    for table in ("secret", "api_key", "engine"):
        op.drop_table(table)
    for index in ("uq_job_idempotency_key", "ix_job_fingerprint", "ix_job_finished"):
        op.drop_index(index, "job")
    for column in _NEW:
        op.drop_column("job", column)


def _job_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("predicted_s", sa.Double()),
        sa.Column("work_s", sa.Double()),
        sa.Column("waiters", sa.Integer(), server_default="0", nullable=False),
        sa.Column("idempotency_key", sa.String(64)),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("retry_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("schedule", sa.Text()),
        sa.Column("checkpoint", sa.Text()),
        sa.Column("content_removed_s", sa.Double()),
    ]
