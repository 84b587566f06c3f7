"""Files of finished jobs expire: those that are there get a week from when they were made."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_WEEK_S = 7 * 86_400


def upgrade() -> None:
    """Give finished jobs an expiry; until now the column was about waiting only."""
    op.execute(
        f"UPDATE job SET expires_at_s = finished_s + {_WEEK_S} "  # noqa: S608 - a constant
        "WHERE finished_s IS NOT NULL"
    )
    op.create_index("ix_job_expiry", "job", ["status", "expires_at_s"])


def downgrade() -> None:
    """Remove the index; what the expiry was before is not known any more, nor needed."""
    op.drop_index("ix_job_expiry", "job")
