"""The metrics of a server by the names that Prometheus gives them: what queries may ask for."""

from __future__ import annotations

from collections.abc import Callable


def plain(name: str) -> set[str]:
    """Return the series of a counter or a gauge."""
    return {name}


def histogram(name: str) -> set[str]:
    """Return the series of a histogram."""
    return {f"{name}_bucket", f"{name}_count", f"{name}_sum"}


SERIES: dict[str, Callable[[str], set[str]]] = {
    "http_server_request_duration_seconds": histogram,
    "gen_ai_server_request_duration_seconds": histogram,
    "tridentserve_job_queue_time_seconds": histogram,
    "tridentserve_slo_requests_total": plain,
    "tridentserve_slo_predictions_total": plain,
    "tridentserve_requests_rejected_total": plain,
    "tridentserve_requests_degraded_total": plain,
    "tridentserve_tenant_outputs_total": plain,
    "tridentserve_stage_duration_seconds": histogram,
    "tridentserve_stage_queue_time_seconds": histogram,
    "tridentserve_stage_step_duration_seconds": histogram,
    "tridentserve_stage_retries_total": plain,
    "tridentserve_stage_pauses_total": plain,
    "tridentserve_team_busy_time_seconds_total": plain,
    "tridentserve_residency_requests_total": plain,
    "tridentserve_residency_load_duration_seconds": histogram,
    "tridentserve_residency_size_bytes": plain,
    "tridentserve_handoff_io_bytes_total": plain,
    "tridentserve_handoff_duration_seconds": histogram,
    "tridentserve_dispatcher_decision_duration_seconds": histogram,
    "tridentserve_dispatcher_held_total": plain,
    "tridentserve_planner_duration_seconds": histogram,
    "tridentserve_planner_replans_total": plain,
    "tridentserve_embeddings_requests_total": plain,
    "tridentserve_jobs": plain,
    "tridentserve_devices": plain,
    "tridentserve_monitor_blind": plain,
    "tridentserve_monitor_dropped": plain,
}


def all_series() -> set[str]:
    """Return every series that a server can have."""
    return {series for name, kind in SERIES.items() for series in kind(name)}
