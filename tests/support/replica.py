"""One process of a deployment with a painted engine, to be killed: `python -m tests.support.replica`.

All of it is in one process, so that SIGKILL takes it whole.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from gateway.app import create_app
from gateway.settings import Settings
from tests.support.painted import PaintedEngine


async def main(stage_s: float) -> None:
    settings = Settings.from_env()
    engine = None
    if settings.role == "engine":
        engine = PaintedEngine(settings.data_dir / "painted", stage_s)
    app = create_app(settings, engine=engine)
    server = Server(
        cast("Any", app),
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        log_level=LogLevels.error,
    )
    await server.serve()


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    asyncio.run(main(float(sys.argv[2])))
