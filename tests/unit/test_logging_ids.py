"""Lines of the engine and its workers name the jobs and the trace that they belong to."""

from __future__ import annotations

from observability.logging import ids_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_launch_is_named_by_its_job_and_trace() -> None:
    found = ids_of([("job_1", PARENT)])
    assert found == {"job_id": "job_1", "trace_id": "0af7651916cd43dd8448eb211c80319c"}


def test_a_batch_is_named_by_all_its_jobs() -> None:
    assert ids_of([("a", None), ("b", PARENT), ("a", None)])["job_id"] == "a,b"


def test_a_job_without_a_trace_is_named_all_the_same() -> None:
    assert ids_of([("a", None)]) == {"job_id": "a"}
    assert ids_of([("a", "nonsense")]) == {"job_id": "a"}
