"""Composition root of a server process: settings in, Litestar app out.

A process answers calls (role `gateway`), runs jobs (`engine`), or does both. The two halves share
nothing but the job table, the artifact store and the events port, so any number of each may run.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
import structlog
from litestar import Litestar, Router
from litestar.di import Provide
from uuid_utils.compat import uuid7

from engine import SystemClock
from gateway import http
from gateway.admission import Admission
from gateway.api.base_url import BaseUrl
from gateway.api.console import AdminOnly, ConsoleController
from gateway.api.files import FileController
from gateway.api.health import HealthController, Probes
from gateway.api.images import ImageController
from gateway.api.jobs import JobController
from gateway.api.metrics import MetricsController
from gateway.api.models import ModelController
from gateway.api.pages import PageController
from gateway.api.videos import VideoController
from gateway.artifacts import ArtifactService
from gateway.auth.authenticate import Authenticate
from gateway.auth.key_store import KeyStore, KnownKeys
from gateway.auth.keys import OPEN_MODE
from gateway.db.secrets import Secrets
from gateway.db.session import Database
from gateway.embedded import embedded_engine
from gateway.errors import EXCEPTION_HANDLERS
from gateway.images import ImageService
from gateway.job_views import JobViews
from gateway.jobs.carriers import events_for
from gateway.jobs.engines import EngineRegistry
from gateway.jobs.leases import JobLeases
from gateway.jobs.previews import PreviewStore
from gateway.jobs.retention import Retention
from gateway.jobs.run import Runner
from gateway.jobs.service import JobService
from gateway.jobs.store import JobStore
from gateway.jobs.sweep import Sweeper
from gateway.measured import JobGauge
from gateway.middleware import DrainBody, RequestLog, RouteSpan, stamp
from gateway.openapi import openapi, openapi_document
from gateway.remote import RemoteEngines
from gateway.runner import Telemetry
from gateway.settings import Settings, is_loopback
from gateway.stopping import end_with_parent, on_stop_signal
from gateway.storage.blobs import BlobStore
from gateway.storage.signing import Signer, offered_secret
from gateway.videos import VideoService
from observability.logging import configure_logging
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.semconv import GATEWAY_SCOPE, SERVICE_NAME
from observability.span_metrics import SpanMetrics
from observability.tracing import build_provider

if TYPE_CHECKING:
    from litestar.types import ControllerRouterHandler

    from engine.ports import Clock
    from gateway.engine_client import Catalogue, EngineClient
    from gateway.jobs.events import JobEvents


_log = structlog.get_logger(__name__)


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything with a life of its own, made once and handed to the routes.

    `runner` is there if this process runs jobs; `remote`, if it only answers calls.
    """

    database: Database
    events: JobEvents
    sweeper: Sweeper
    catalogue: Catalogue
    jobs: JobService
    blobs: BlobStore
    signer: Signer
    authenticate: Authenticate
    artifacts: ArtifactService
    images: ImageService
    videos: VideoService
    views: JobViews
    runner: Runner | None
    remote: RemoteEngines | None
    telemetry: Telemetry
    job_gauge: JobGauge

    def stop(self, then: Callable[[], None]) -> None:
        """Hear of the end: what runs may finish, then `then` sends those who still wait away."""
        if self.runner is None:
            then()
        else:
            self.runner.drain(then)


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
        owns_process: whether stop signals to this process are meant for the app.

    Raises:
        PipelineError: a model folder cannot be served.
    """
    parts = _build(settings, engine, clock or SystemClock())
    return Litestar(
        route_handlers=_routes(settings, parts),
        dependencies=_dependencies(settings, parts),
        middleware=[RequestLog(), RouteSpan(), DrainBody()],
        before_send=[stamp],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[_lifespan(settings, parts, owns_process=owns_process)],
        plugins=[http.server_spans(parts.telemetry.provider)],
        cors_config=http.cors(settings.cors_origins),
        openapi_config=openapi(version(SERVICE_NAME)),
        request_max_body_size=http.MAX_JSON_BYTES,
        logging_config=None,
    )


def _routes(settings: Settings, parts: Parts) -> list[ControllerRouterHandler]:
    """Return what a process answers: one with only an engine shows how it is, and no API."""
    console = Router(
        "/",
        route_handlers=[ConsoleController],
        guards=[AdminOnly(settings.admin, only_this_machine=is_loopback(settings.host))],
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


def create_app_from_env() -> Litestar:
    """Build the app of a server process; granian calls this in its worker."""
    settings = Settings.from_env()
    configure_logging(settings.log_format)
    end_with_parent()
    return create_app(settings, owns_process=True)


def _build(settings: Settings, engine: EngineClient | None, clock: Clock) -> Parts:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    telemetry = _telemetry(settings)
    provider = telemetry.provider
    database = Database(settings.database_url)
    events = events_for(settings.database_url, shared=settings.role != "both")
    registry = EngineRegistry(database)
    leases = JobLeases(
        database, owner=_owner(), lease_s=settings.lease_s, retention_s=settings.retention_s
    )
    blobs = BlobStore.at(settings.artifacts_place)
    runner = remote = None
    if settings.role == "gateway":
        remote = RemoteEngines(registry, clock, silent_after_s=settings.lease_s)
    else:
        engine = engine or embedded_engine(settings, telemetry)
        runner = Runner(
            engine=engine,
            leases=leases,
            registry=registry,
            events=events,
            blobs=blobs,
            clock=clock,
            tracer=provider.get_tracer(GATEWAY_SCOPE),
            max_concurrent=settings.max_concurrent,
            drain_s=settings.drain_s,
        )
    catalogue = engine if remote is None else remote
    assert catalogue is not None  # an engine of our own, or the others'
    store, signer = JobStore(database), Signer()
    artifacts = ArtifactService(store, blobs, signer, clock, url_ttl_s=settings.url_ttl_s)
    jobs = JobService(store, events, clock)
    admission = Admission(
        engine=catalogue,
        jobs=jobs,
        blobs=blobs,
        clock=clock,
        slo_scale=settings.slo_scale,
        queue_limit=settings.queue_limit,
        most_pixels=settings.max_image_pixels,
    )
    images = ImageService(
        engine=catalogue,
        jobs=jobs,
        artifacts=artifacts,
        previews=PreviewStore(blobs),
        admission=admission,
        timeout_s=settings.request_timeout_s,
    )
    videos = VideoService(
        engine=catalogue,
        jobs=jobs,
        artifacts=artifacts,
        admission=admission,
        timeout_s=settings.video_timeout_s,
    )
    return Parts(
        database=database,
        events=events,
        sweeper=Sweeper(
            leases=leases,
            retention=Retention(database, blobs, history_s=settings.history_s),
            events=events,
            clock=clock,
        ),
        catalogue=catalogue,
        jobs=jobs,
        blobs=blobs,
        signer=signer,
        authenticate=Authenticate(
            settings.keys,
            KnownKeys(KeyStore(database), clock),
            may_be_open=is_loopback(settings.host),
        ),
        artifacts=artifacts,
        images=images,
        videos=videos,
        views=JobViews(engine=catalogue, jobs=jobs, artifacts=artifacts, clock=clock),
        runner=runner,
        remote=remote,
        telemetry=telemetry,
        job_gauge=JobGauge(telemetry.meters.meter, store.census),
    )


def _telemetry(settings: Settings) -> Telemetry:
    monitor, meters = StageMonitor(window_s=settings.planner_window_s), Meters()
    processors = (monitor, SpanMetrics(meters.meter))
    provider = build_provider(trace_file=settings.trace_file, processors=processors)
    return Telemetry(provider, monitor, meters)


def _owner() -> str:
    """Return a name that no earlier process had: in containers host and pid are always the same."""
    return f"{socket.gethostname()[:24]}:{uuid7().hex}"


def _dependencies(settings: Settings, parts: Parts) -> dict[str, Provide]:
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
        "base_url": BaseUrl(settings.public_base_url),
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


def _lifespan(
    settings: Settings, parts: Parts, *, owns_process: bool
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        """Start in this order, stop in the opposite one."""
        async with AsyncExitStack() as stack:
            stack.callback(parts.telemetry.meters.shutdown)
            stack.callback(parts.telemetry.provider.shutdown)
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
            stack.callback(stop_waiting)
            yield

    return lifespan
