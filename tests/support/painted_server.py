"""A server of its own with an engine that paints at once, for tools that need a URL.

granian imports `app`; `TRIDENT_DATA_DIR` says where its state is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from litestar import Litestar

from gateway.app import create_app
from gateway.settings import Settings
from observability.logging import configure_logging
from tests.support.fake_engine import FakeEngine, spec_of, video_spec_of
from tests.support.server import free_port

START_WITHIN_S = 120


def app() -> Litestar:
    """Return the real app in front of a picture and a video model that only paint."""
    configure_logging("json")
    engine = FakeEngine(spec_of(), video_spec_of())
    engine.is_sure = False  # about how long things take, so that no deadline is refused
    return create_app(Settings.from_env(), engine=engine, owns_process=True)


@contextmanager
def running_painted_server(data_dir: Path, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the app in a process; yield its URL without a slash at the end."""
    port = free_port()
    arguments = ["--interface", "asgi", "--factory", "--port", str(port), "--no-access-log"]
    with (data_dir / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "granian", *arguments, "tests.support.painted_server:app"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TRIDENT_DATA_DIR": str(data_dir), **(env or {})},
            stdout=log,
            stderr=log,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_ready(url)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def wait_ready(url: str) -> None:
    """Return when the server answers that it is ready."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    message = f"{url} is not ready after {START_WITHIN_S} s"
    raise TimeoutError(message)
