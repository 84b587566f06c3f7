"""What a server process is made of, put together from its settings: no routes, no HTTP.

Three layers, each from the one below: what everything stands on (`Foundation`), the side that runs
jobs or follows the engines that do (`Engines`), and the services that the routes call.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from uuid_utils.compat import uuid7

from gateway.admission import Admission
from gateway.artifacts import ArtifactService
from gateway.auth.authenticate import Authenticate
from gateway.auth.hosts import OwnNames, is_loopback
from gateway.auth.key_store import KeyStore, KnownKeys
from gateway.db.session import Database
from gateway.embedded import embedded_engine
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
from gateway.measured import AdmissionCounts, JobGauge
from gateway.remote import RemoteEngines
from gateway.runner import Telemetry
from gateway.settings import Settings
from gateway.storage.blobs import BlobStore
from gateway.storage.signing import Signer
from gateway.videos import VideoService
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.semconv import GATEWAY_SCOPE
from observability.span_metrics import SpanMetrics
from observability.tracing import build_provider

if TYPE_CHECKING:
    from engine.ports import Clock
    from gateway.engine_client import Catalogue, EngineClient
    from gateway.jobs.events import JobEvents


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


class Foundation(msgspec.Struct, frozen=True, kw_only=True):
    """What everything else stands on."""

    settings: Settings
    clock: Clock
    telemetry: Telemetry
    database: Database
    events: JobEvents
    blobs: BlobStore
    leases: JobLeases


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """What can be asked for, and who runs it: a runner of this process, or remote engines."""

    catalogue: Catalogue
    runner: Runner | None = None
    remote: RemoteEngines | None = None


def build(settings: Settings, engine: EngineClient | None, clock: Clock) -> Parts:
    """Make the parts of a process; `engine` replaces the embedded one."""
    base = _foundation(settings, clock)
    engines = _engines(base, engine)
    store, signer = JobStore(base.database), Signer()
    artifacts = ArtifactService(store, base.blobs, signer, clock, url_ttl_s=settings.url_ttl_s)
    jobs = JobService(store, base.events, clock, engines.runner)
    admission = _admission(base, engines.catalogue, jobs)
    return Parts(
        database=base.database,
        events=base.events,
        sweeper=_sweeper(base, engines.runner),
        catalogue=engines.catalogue,
        jobs=jobs,
        blobs=base.blobs,
        signer=signer,
        authenticate=_authenticate(base),
        artifacts=artifacts,
        images=ImageService(
            engine=engines.catalogue,
            jobs=jobs,
            artifacts=artifacts,
            previews=PreviewStore(base.blobs),
            admission=admission,
            timeout_s=settings.request_timeout_s,
        ),
        videos=VideoService(
            engine=engines.catalogue,
            jobs=jobs,
            artifacts=artifacts,
            admission=admission,
            timeout_s=settings.video_timeout_s,
        ),
        views=JobViews(engine=engines.catalogue, jobs=jobs, artifacts=artifacts, clock=clock),
        runner=engines.runner,
        remote=engines.remote,
        telemetry=base.telemetry,
        job_gauge=JobGauge(base.telemetry.meters.meter, store.census),
    )


def _foundation(settings: Settings, clock: Clock) -> Foundation:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(settings.database_url)
    return Foundation(
        settings=settings,
        clock=clock,
        telemetry=_telemetry(settings),
        database=database,
        events=events_for(settings.database_url, shared=settings.role != "both"),
        blobs=BlobStore.at(settings.artifacts_place),
        leases=JobLeases(
            database, owner=_owner(), lease_s=settings.lease_s, retention_s=settings.retention_s
        ),
    )


def _engines(base: Foundation, engine: EngineClient | None) -> Engines:
    settings, registry = base.settings, EngineRegistry(base.database)
    if settings.role == "gateway":
        remote = RemoteEngines(registry, base.clock, silent_after_s=settings.lease_s)
        return Engines(catalogue=remote, remote=remote)
    engine = engine or embedded_engine(settings, base.telemetry)
    runner = Runner(
        engine=engine,
        leases=base.leases,
        registry=registry,
        events=base.events,
        blobs=base.blobs,
        clock=base.clock,
        tracer=base.telemetry.provider.get_tracer(GATEWAY_SCOPE),
        max_concurrent=settings.max_concurrent,
        drain_s=settings.drain_s,
    )
    return Engines(catalogue=engine, runner=runner)


def _admission(base: Foundation, catalogue: Catalogue, jobs: JobService) -> Admission:
    return Admission(
        engine=catalogue,
        jobs=jobs,
        blobs=base.blobs,
        clock=base.clock,
        slo_scale=base.settings.slo_scale,
        queue_limit=base.settings.queue_limit,
        most_pixels=base.settings.max_image_pixels,
        counts=AdmissionCounts(base.telemetry.meters.meter),
    )


def _sweeper(base: Foundation, runner: Runner | None) -> Sweeper:
    return Sweeper(
        leases=base.leases,
        retention=Retention(base.database, base.blobs, history_s=base.settings.history_s),
        events=base.events,
        clock=base.clock,
        renew=None if runner is None else runner.renew,
    )


def _authenticate(base: Foundation) -> Authenticate:
    known = KnownKeys(KeyStore(base.database), base.clock)
    settings = base.settings
    names = OwnNames(settings.public_base_url)
    return Authenticate(settings.keys, known, names, may_be_open=is_loopback(settings.host))


def _telemetry(settings: Settings) -> Telemetry:
    monitor, meters = StageMonitor(window_s=settings.planner_window_s), Meters()
    processors = (monitor, SpanMetrics(meters.meter))
    provider = build_provider(trace_file=settings.trace_file, processors=processors)
    return Telemetry(provider, monitor, meters)


def _owner() -> str:
    """Return a name that no earlier process had: in containers host and pid are always the same."""
    return f"{socket.gethostname()[:24]}:{uuid7().hex}"
