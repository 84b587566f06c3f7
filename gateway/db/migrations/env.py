"""What alembic runs: migrations over a connection that `gateway.db.schema` opened and commits."""

from __future__ import annotations

from alembic import context

from gateway.db.models import JobRow

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=JobRow.metadata,
    compare_type=True,
)
context.run_migrations()
