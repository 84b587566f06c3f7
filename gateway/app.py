"""Composition root of a server process: settings in, Litestar app out.

A process answers calls (role `gateway`), runs jobs (`engine`), or does both. The two halves share
nothing but the job table, the artifact store and the events port, so any number of each may run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import structlog
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide

from engine import SystemClock
from gateway import http, interpreter
from gateway.api.console import AdminOnly, ConsoleController
from gateway.api.files import FileController
from gateway.api.health import HealthController, Probes
from gateway.api.images import ImageController
from gateway.api.jobs import JobController
from gateway.api.metrics import MetricsController
from gateway.api.models import ModelController
from gateway.api.pages import PageController
from gateway.api.videos import VideoController
from gateway.auth.hosts import OwnNames, is_loopback
from gateway.auth.keys import OPEN_MODE
from gateway.db.secrets import Secrets
from gateway.errors import EXCEPTION_HANDLERS
from gateway.middleware import DrainBody, RequestLog, ServerSpans, stamp
from gateway.openapi import openapi, openapi_document
from gateway.parts import Parts, build
from gateway.settings import Settings
from gateway.stopping import end_with_parent, on_stop_signal
from gateway.storage.signing import offered_secret
from observability.logging import configure_logging
from observability.semconv import SERVICE_NAME

if TYPE_CHECKING:
    from litestar.types import ControllerRouterHandler

    from engine.ports import Clock
    from gateway.engine_client import EngineClient
    from gateway.runner import Telemetry


EXPORT_WITHIN_S: Final = 3.0

_log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    engine: EngineClient | None = None,
    clock: Clock | None = None,
    owns_process: bool = False,
) -> Litestar:
    """Build the app.

    Args:
        settings: what the operator wants.
        engine: replaces the embedded one in tests.
        clock: replaces the real one in tests.
        owns_process: whether stop signals to this process are meant for the app, and its
            interpreter may be set to the app's needs.

    Raises:
        PipelineError: a model folder cannot be served.
    """
    parts = build(settings, engine, clock or SystemClock())
    app = Litestar(
        route_handlers=_routes(settings, parts),
        dependencies=_dependencies(parts),
        state=State({"public_base_url": settings.public_base_url}),
        middleware=[RequestLog(), DrainBody()],
        before_send=[stamp],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[_lifespan(settings, parts, owns_process=owns_process)],
        cors_config=http.cors(settings.cors_origins),
        openapi_config=openapi(version(SERVICE_NAME)),
        request_max_body_size=http.MAX_JSON_BYTES,
        logging_config=None,
    )
    app.asgi_handler = ServerSpans(app.asgi_handler, parts.telemetry.provider)
    return app


def _routes(settings: Settings, parts: Parts) -> list[ControllerRouterHandler]:
    """Return what a process answers: one with only an engine shows how it is, and no API."""
    console = Router(
        "/",
        route_handlers=[ConsoleController],
        guards=[_admin_only(settings)],
    )
    watching: list[ControllerRouterHandler] = [
        HealthController,
        MetricsController,
        PageController,
        console,
    ]
    if settings.role == "engine":
        return watching
    v1 = Router(
        "/v1",
        route_handlers=[
            ImageController,
            VideoController,
            JobController,
            ModelController,
            FileController,
        ],
        guards=[parts.authenticate.guard],
    )
    return [*watching, v1, openapi_document]


def _admin_only(settings: Settings) -> AdminOnly:
    names = OwnNames(settings.public_base_url)
    return AdminOnly(settings.admin, names, only_this_machine=is_loopback(settings.host))


def create_app_from_env() -> Litestar:
    """Build the app of a server process; granian calls this in its worker."""
    settings = Settings.from_env()
    configure_logging(settings.log_format)
    end_with_parent()
    return create_app(settings, owns_process=True)


def _dependencies(parts: Parts) -> dict[str, Provide]:
    runs_jobs = parts.catalogue if parts.runner is None else parts.runner
    probes = Probes(
        reasons=(runs_jobs.readiness,),
        notices=parts.catalogue.notices,
        writable=(
            ("job database", parts.database.check_writable),
            ("artifact store", parts.blobs.check_writable),
        ),
    )
    values: dict[str, object] = {
        "engine": parts.catalogue,
        "artifacts": parts.artifacts,
        "images": parts.images,
        "videos": parts.videos,
        "views": parts.views,
        "probes": probes,
        "meters": parts.telemetry.meters,
        "feed": parts.telemetry.feed,
        "job_gauge": parts.job_gauge,
    }
    return {name: _constant(value) for name, value in values.items()}


def _constant(value: object) -> Provide:
    def provide() -> object:
        return value

    return Provide(provide, sync_to_thread=False)


async def _end_telemetry(telemetry: Telemetry) -> None:
    """Export what is left; a collector that does not answer may not hold up the end."""
    ends = [
        threading.Thread(target=end, daemon=True)
        for end in (telemetry.provider.shutdown, telemetry.meters.shutdown)
    ]
    for thread in ends:
        thread.start()
    until_s = time.monotonic() + EXPORT_WITHIN_S
    for thread in ends:
        await asyncio.to_thread(thread.join, max(0.0, until_s - time.monotonic()))
    if any(thread.is_alive() for thread in ends):
        _log.warning("telemetry_not_exported", waited_s=EXPORT_WITHIN_S)


def _lifespan(
    settings: Settings, parts: Parts, *, owns_process: bool
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        """Start in this order, stop in the opposite one."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_end_telemetry, parts.telemetry)
            stack.push_async_callback(parts.database.close)
            await parts.database.open()
            offered = offered_secret(settings.data_dir / "signing.key")
            parts.signer.use(await Secrets(parts.database).get_or_make("links", offered))
            if settings.role != "engine" and await parts.authenticate.is_open():
                _log.warning("open_mode", advice=OPEN_MODE)
            await stack.enter_async_context(parts.events.connected())
            await stack.enter_async_context(parts.sweeper.sweeping())
            if parts.remote is not None:
                await stack.enter_async_context(parts.remote.followed())
            if parts.runner is not None:
                stack.push_async_callback(parts.runner.close)
                parts.runner.start()

            def stop_waiting() -> None:
                parts.jobs.close()
                parts.telemetry.feed.close()

            if owns_process:
                on_stop_signal(lambda: parts.stop(stop_waiting))
                interpreter.serve_calls()
            stack.callback(stop_waiting)
            yield

    return lifespan
