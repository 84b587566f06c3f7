"""`GET /metrics`: what the process counts, for Prometheus. Names no tenant's prompts, jobs or keys."""

from __future__ import annotations

from litestar import Controller, Response, get
from litestar.di import NamedDependency

from gateway.measured import JobGauge
from gateway.middleware import QUIET
from observability.meters import CONTENT_TYPE, Meters


class MetricsController(Controller):
    """Metrics."""

    tags = ("health",)
    opt = {QUIET: True}  # noqa: RUF012 - litestar reads it from the class

    @get("/metrics", media_type="text/plain")
    async def metrics(
        self, meters: NamedDependency[Meters], job_gauge: NamedDependency[JobGauge]
    ) -> Response[bytes]:
        """Return all metrics in Prometheus' text format."""
        await job_gauge.refresh()
        return Response(meters.page(), headers={"content-type": CONTENT_TYPE})
