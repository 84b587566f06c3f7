"""Indexes for what is asked of a table that remembers a month of jobs."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Find a tenant's jobs of one state, and files to remove, without looking at all the others."""
    op.create_index("ix_job_state", "job", ["tenant", "status", "id"])
    op.create_index("ix_job_content", "job", ["content_removed_s", "expires_at_s"])


def downgrade() -> None:
    """Remove both."""
    op.drop_index("ix_job_content", "job")
    op.drop_index("ix_job_state", "job")
