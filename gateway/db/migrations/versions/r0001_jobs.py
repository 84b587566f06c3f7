"""Jobs and their artifacts.

Databases that were made before there were migrations have these tables without a revision, some
of them without the newer columns. They are adopted: what is missing is added, nothing is lost.
"""

from __future__ import annotations

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, or complete those that are there."""
    _complete("job", _job_columns(), sa.PrimaryKeyConstraint("id", name="pk_job"))
    _complete(
        "artifact",
        _artifact_columns(),
        sa.PrimaryKeyConstraint("id", name="pk_artifact"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name="fk_artifact_job_id_job", ondelete="CASCADE"
        ),
    )
    _index("ix_job_queue", "job", ["status", "deadline_s"])
    _index("ix_job_tenant", "job", ["tenant", "id"])
    _index("ix_job_list", "job", ["tenant", "modality", "id"])
    _index("ix_artifact_job_id", "artifact", ["job_id"])


def downgrade() -> None:
    """Remove both tables and all that is in them."""
    op.drop_table("artifact")
    op.drop_table("job")


def _complete(
    table: str, columns: list[sa.Column[object]], *constraints: sa.schema.SchemaItem
) -> None:
    present = sa.inspect(op.get_bind())
    if not present.has_table(table):
        op.create_table(table, *columns, *constraints)
        return
    known = {column["name"] for column in present.get_columns(table)}
    for column in columns:
        if column.name not in known:
            op.add_column(table, column)


def _index(name: str, table: str, columns: list[str]) -> None:
    op.create_index(name, table, columns, if_not_exists=True)


def _job_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("modality", sa.String(8), server_default="image", nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("traceparent", sa.String(64)),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("expires_at_s", sa.Double(), nullable=False),
        sa.Column("started_s", sa.Double()),
        sa.Column("finished_s", sa.Double()),
        sa.Column("deleted_s", sa.Double()),
        sa.Column("progress", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until_s", sa.Double()),
        sa.Column("error", sa.Text()),
        sa.Column("timeline", sa.Text()),
        *_audit_columns(),
    ]


def _artifact_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("job_id", GUID(length=16), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("index_in_job", sa.Integer(), nullable=False),
        sa.Column("blob", sa.String(255), nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("width_px", sa.Integer(), nullable=False),
        sa.Column("height_px", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("seed", sa.String(20), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        *_audit_columns(),
    ]


def _audit_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("sa_orm_sentinel", sa.Integer()),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("updated_at", DateTimeUTC(timezone=True), nullable=False),
    ]
