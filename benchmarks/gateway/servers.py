"""The servers that `overhead.py` compares; granian imports one of these factories.

They read two variables: `BENCH_FOLDER`, an empty folder, and `BENCH_ENGINE_S`, how long the null
engine takes for a picture.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from litestar import Litestar, Request, post

ROOT: Final = Path(__file__).parents[2]
PATH: Final = "/v1/images/generations"

if TYPE_CHECKING:
    from engine import Along, GenerationRequest, GenerationResult
    from engine.journal import Journal


def _engine_s() -> float:
    return float(os.environ["BENCH_ENGINE_S"])


def gateway() -> Litestar:
    """Return the real app, SQLite and all, with an engine that only waits and paints."""
    sys.path.insert(0, str(ROOT))
    from engine import ALONE  # noqa: PLC0415 - only in the server's process
    from gateway.app import create_app  # noqa: PLC0415
    from gateway.settings import Settings  # noqa: PLC0415
    from observability.logging import configure_logging  # noqa: PLC0415
    from tests.support.fake_engine import FakeEngine  # noqa: PLC0415

    class NullEngine(FakeEngine):
        """Waits as long as it is told, and remembers nothing."""

        async def generate(
            self, request: GenerationRequest, journal: Journal, along: Along = ALONE
        ) -> GenerationResult:
            if _engine_s():
                await asyncio.sleep(_engine_s())
            result = await super().generate(request, journal, along)
            self.requests.clear()
            self.files.clear()
            self.resumed.clear()
            return result

    configure_logging("json")
    folder = Path(os.environ["BENCH_FOLDER"])
    settings = Settings(models=(), data_dir=folder, max_concurrent=64, queue_limit=1000)
    return create_app(settings, engine=NullEngine(), owns_process=True)


def without_database() -> Litestar:
    """Return a handler that checks the same body and paints the same picture; keeps nothing."""
    sys.path.insert(0, str(ROOT))
    from gateway.schemas.images import ImageGenerationBody  # noqa: PLC0415
    from gateway.wire import decode  # noqa: PLC0415
    from tests.support.fake_engine import png  # noqa: PLC0415

    @post(PATH, status_code=200)
    async def handler(request: Request[Any, Any, Any]) -> dict[str, Any]:
        decode(await request.body(), ImageGenerationBody)
        if _engine_s():
            await asyncio.sleep(_engine_s())
        content = base64.b64encode(png(64, 48, b"abc")).decode()
        return {"created": int(time.time()), "data": [{"b64_json": content}]}

    return Litestar([handler], logging_config=None)


def bare() -> Litestar:
    """Return a handler that waits and answers a constant."""

    @post(PATH, status_code=200)
    async def handler() -> dict[str, str]:
        if _engine_s():
            await asyncio.sleep(_engine_s())
        return {"status": "ok"}

    return Litestar([handler], logging_config=None)
