"""Lines of the engine and its workers name the jobs, calls and trace that they belong to."""

from __future__ import annotations

import msgspec
from structlog.contextvars import bound_contextvars

from engine.types import GenerationRequest, RequestId
from observability.logging import bound_ids, ids_of
from tests.support.builders import a_request

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def asked(job: str, trace: str | None = None, call: str | None = None) -> GenerationRequest:
    return msgspec.structs.replace(
        a_request(), id=RequestId(job), traceparent=trace, http_request=call
    )


def test_a_launch_is_named_by_its_job_its_call_and_its_trace() -> None:
    found = ids_of([asked("job_1", PARENT, "req_1")])
    assert found == {"job_id": "job_1", "request_id": "req_1", "trace_id": TRACE}


def test_a_batch_is_named_by_all_its_jobs_and_calls() -> None:
    found = ids_of([asked("a", call="r"), asked("b", PARENT, "s"), asked("a", call="r")])
    assert found == {"job_id": "a,b", "request_id": "r,s", "trace_id": TRACE}


def test_a_job_without_a_trace_is_named_all_the_same() -> None:
    assert ids_of([asked("a")]) == {"job_id": "a"}
    assert ids_of([asked("a", "nonsense")]) == {"job_id": "a"}


def test_what_is_bound_is_handed_on_and_nothing_else() -> None:
    assert bound_ids() == {}
    with bound_contextvars(job_id="a", request_id="r", tenant="acme", trace_id=None):
        assert bound_ids() == {"job_id": "a", "request_id": "r"}
