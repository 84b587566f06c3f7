"""Headers of an answer whose job was admitted with fewer denoise steps than its caller wished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.jobs.record import Job

USED_HEADER: Final = "x-used-steps"
WISHED_HEADER: Final = "x-wished-steps"


def degraded_headers(job: Job) -> dict[str, str]:
    """Return how many steps a degraded job does and its caller wished; none for any other job."""
    how = job.request.degraded
    if how is None:
        return {}
    return {USED_HEADER: str(how.used_steps), WISHED_HEADER: str(how.wished_steps)}
