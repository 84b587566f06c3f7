"""Every span, attribute and log name of the project, in one place.

GenAI names follow open-telemetry/semantic-conventions-genai (status: development), written out
here because the Python package marks its constants deprecated.
"""

from __future__ import annotations

from typing import Final

SERVICE_NAME: Final = "tridentserve"
ENGINE_SCOPE: Final = "tridentserve.engine"
GATEWAY_SCOPE: Final = "tridentserve.gateway"
HTTP_SCOPE: Final = "tridentserve.http"

GEN_AI_OPERATION: Final = "generate_content"
ATTR_OPERATION: Final = "gen_ai.operation.name"
ATTR_PROVIDER: Final = "gen_ai.provider.name"
ATTR_REQUEST_MODEL: Final = "gen_ai.request.model"
ATTR_REQUEST_SEED: Final = "gen_ai.request.seed"
ATTR_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
ATTR_OUTPUT_TYPE: Final = "gen_ai.output.type"
ATTR_ERROR_TYPE: Final = "error.type"
ATTR_HTTP_METHOD: Final = "http.request.method"
ATTR_HTTP_ROUTE: Final = "http.route"
ATTR_HTTP_STATUS: Final = "http.response.status_code"
ATTR_URL_SCHEME: Final = "url.scheme"
ATTR_URL_PATH: Final = "url.path"
ATTR_CLIENT_ADDRESS: Final = "client.address"
ATTR_USER_AGENT: Final = "user_agent.original"

ATTR_REQUEST_ID: Final = "tridentserve.request.id"
ATTR_JOB_ID: Final = "tridentserve.job.id"
ATTR_TENANT: Final = "tridentserve.tenant"
ATTR_MODEL: Final = "tridentserve.model"
ATTR_STAGE: Final = "tridentserve.stage.kind"
ATTR_NODE: Final = "tridentserve.stage.node"
ATTR_SHAPE: Final = "tridentserve.shape"
ATTR_STEPS: Final = "tridentserve.steps"
ATTR_TEAM: Final = "tridentserve.team.devices"
ATTR_DEGREE: Final = "tridentserve.team.degree"
ATTR_BATCH: Final = "tridentserve.batch.size"
ATTR_STEPS_WISHED: Final = "tridentserve.steps.wished"
ATTR_STEP_FROM: Final = "tridentserve.steps.from"
ATTR_STEPS_DONE: Final = "tridentserve.steps.done"
ATTR_PAUSED: Final = "tridentserve.stage.paused"
ATTR_ATTEMPT: Final = "tridentserve.attempt"
ATTR_PLAN_ID: Final = "tridentserve.plan.id"
ATTR_PLACEMENT: Final = "tridentserve.placement.version"
ATTR_RESIDENCY: Final = "tridentserve.residency"
ATTR_QUEUE_WAIT_S: Final = "tridentserve.queue_wait_s"
ATTR_LOAD_S: Final = "tridentserve.load_s"
ATTR_RUN_S: Final = "tridentserve.run_s"
ATTR_HANDOFF_S: Final = "tridentserve.handoff_s"
ATTR_HANDOFF_BYTES: Final = "tridentserve.handoff_bytes"
ATTR_PEAK_MEMORY: Final = "tridentserve.peak_memory_bytes"

RESIDENCY_HIT: Final = "hit"
RESIDENCY_LOAD: Final = "load"


def job_span_name(model: str) -> str:
    """Return the GenAI span name of a generation: `{operation} {model}`."""
    return f"{GEN_AI_OPERATION} {model}"


def stage_span_name(kind: str) -> str:
    """Return the span name of one stage execution."""
    return f"stage {kind}"


ATTR_SLO: Final = "tridentserve.slo"
SLO_MET: Final = "met"
SLO_MISSED: Final = "missed"
SLO_UNKNOWN: Final = "unknown"

# Metrics. Durations are seconds; labels are bounded: models, stages, degrees, states, routes, codes.
METRIC_HTTP_DURATION: Final = "http.server.request.duration"
METRIC_JOB_DURATION: Final = "gen_ai.server.request.duration"
METRIC_JOB_QUEUE: Final = "tridentserve.job.queue_time"
METRIC_SLO: Final = "tridentserve.slo.requests"
METRIC_SLO_PREDICTED: Final = "tridentserve.slo.predictions"
METRIC_REJECTIONS: Final = "tridentserve.requests.rejected"
METRIC_DEGRADED: Final = "tridentserve.requests.degraded"
METRIC_TENANT_OUTPUTS: Final = "tridentserve.tenant.outputs"
METRIC_STAGE_DURATION: Final = "tridentserve.stage.duration"
METRIC_STAGE_QUEUE: Final = "tridentserve.stage.queue_time"
METRIC_STEP_DURATION: Final = "tridentserve.stage.step.duration"
METRIC_STAGE_RETRIES: Final = "tridentserve.stage.retries"
METRIC_STAGE_PAUSES: Final = "tridentserve.stage.pauses"
METRIC_TEAM_SECONDS: Final = "tridentserve.team.busy_time"
METRIC_RESIDENCY: Final = "tridentserve.residency.requests"
METRIC_LOAD_DURATION: Final = "tridentserve.residency.load.duration"
METRIC_RESIDENT_BYTES: Final = "tridentserve.residency.size"
METRIC_HANDOFF_BYTES: Final = "tridentserve.handoff.io"
METRIC_HANDOFF_DURATION: Final = "tridentserve.handoff.duration"
METRIC_DECISION_DURATION: Final = "tridentserve.dispatcher.decision.duration"
METRIC_HELD: Final = "tridentserve.dispatcher.held"
METRIC_PLANNING_DURATION: Final = "tridentserve.planner.duration"
METRIC_REPLANS: Final = "tridentserve.planner.replans"
METRIC_DEVICES: Final = "tridentserve.devices"
METRIC_JOBS: Final = "tridentserve.jobs"
METRIC_EMBEDDINGS: Final = "tridentserve.embeddings.requests"
METRIC_MONITOR_BLIND: Final = "tridentserve.monitor.blind"
METRIC_MONITOR_DROPPED: Final = "tridentserve.monitor.dropped"

LABEL_OUTCOME: Final = "outcome"
LABEL_REASON: Final = "reason"
LABEL_STATE: Final = "state"
LABEL_MODEL: Final = "model"
LABEL_STAGE: Final = "stage"
LABEL_DEGREE: Final = "degree"
LABEL_ROUTE: Final = "route"
LABEL_METHOD: Final = "method"
LABEL_STATUS: Final = "status"
LABEL_TENANT: Final = "tenant"
OUTCOME_OK: Final = "ok"
OUTCOME_HIT: Final = "hit"
OUTCOME_MISS: Final = "miss"
