"""The layout of the database, change by change, for alembic; `gateway.db.schema` runs it."""
