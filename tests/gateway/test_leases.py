"""The job table as a queue: nothing is lost, nothing runs twice, nobody waits for ever."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from engine import GenerationRequest, ModelId, RequestId, Shape, StageKind, StageTiming
from engine.types import DeviceId, NodeId
from gateway.auth.principal import TenantId
from gateway.db.session import Database
from gateway.jobs.leases import MAX_ATTEMPTS, JobLeases
from gateway.jobs.record import (
    Job,
    JobError,
    KeptStage,
    NewJob,
    StoredArtifact,
    key_of,
    new_artifact_id,
    new_job_id,
)
from gateway.jobs.rows import JOBS
from gateway.jobs.state import JobStatus
from gateway.jobs.store import JobStore, QueueFullError

ACME, GLOBEX = TenantId("acme"), TenantId("globex")
MODELS = ("shapes",)
LEASE_S = 30.0


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def leases(database: Database) -> JobLeases:
    return JobLeases(database, "first", lease_s=LEASE_S)


@pytest.fixture
def successor(database: Database) -> JobLeases:
    return JobLeases(database, "second", lease_s=LEASE_S)


def a_job(*, deadline_s: float = 100.0, tenant: TenantId = ACME, model: str = "shapes") -> NewJob:
    job = new_job_id()
    return NewJob(
        id=job,
        tenant=tenant,
        request=GenerationRequest(
            id=RequestId(job),
            model=ModelId(model),
            prompt="a red circle",
            shape=Shape(64, 64),
            steps=4,
            guidance_scale=1.0,
            seed=1,
            arrival_s=0.0,
            deadline_s=deadline_s,
        ),
        request_id="req_1",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        expires_at_s=1000.0,
    )


def a_kept_stage(attempt: int) -> KeptStage:
    timing = StageTiming(
        node=NodeId("encode"),
        stage=StageKind.ENCODE,
        device=DeviceId("cpu:0"),
        attempt=1,
        started_s=0.0,
        queue_wait_s=0.0,
        load_s=0.0,
        run_s=1.0,
    )
    return KeptStage(timing.node, timing, "blob", attempt=attempt)


def an_artifact() -> StoredArtifact:
    return StoredArtifact(
        id=new_artifact_id(),
        index=0,
        blob="b",
        media_type="image/png",
        width_px=64,
        height_px=64,
        size_bytes=3,
        seed=2**63,
        sha256="0" * 64,
    )


async def status_of(store: JobStore, job: Job) -> JobStatus:
    found = await store.get(job.id, job.tenant)
    assert found is not None
    return found.status


async def test_a_job_is_read_back_as_it_was_written(store: JobStore) -> None:
    new = a_job()
    await store.add(new, queue_limit=9)
    job = await store.get(new.id, ACME)
    assert job is not None
    assert (job.request, job.traceparent, job.request_id) == (
        new.request,
        new.traceparent,
        new.request_id,
    )
    assert (job.status, job.attempts, job.artifacts) == (JobStatus.QUEUED, 0, ())


async def test_ids_sort_by_time() -> None:
    ids = [new_job_id() for _ in range(50)]
    assert sorted(ids) == ids


async def test_a_tenant_cannot_read_or_cancel_anothers_job(store: JobStore) -> None:
    job = await store.add(a_job(), queue_limit=9)
    assert await store.get(job.id, GLOBEX) is None
    assert await store.request_cancel(job.id, GLOBEX, now_s=1.0) is None
    assert await status_of(store, job) is JobStatus.QUEUED


async def test_the_queue_is_bounded_by_what_waits(store: JobStore, leases: JobLeases) -> None:
    await store.add(a_job(), queue_limit=1)
    with pytest.raises(QueueFullError):
        await store.add(a_job(), queue_limit=1)
    await leases.take(1, models=MODELS, now_s=1.0)
    await store.add(a_job(), queue_limit=1)


async def test_the_earliest_deadline_is_leased_first(store: JobStore, leases: JobLeases) -> None:
    jobs = [await store.add(a_job(deadline_s=at), queue_limit=9) for at in (30.0, 10.0, 20.0)]
    taken = await leases.take(2, models=MODELS, now_s=1.0)
    assert [job.id for job in taken] == [jobs[1].id, jobs[2].id]


async def test_a_job_is_leased_once(
    store: JobStore, leases: JobLeases, successor: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    assert len(await leases.take(9, models=MODELS, now_s=1.0)) == 1
    assert await successor.take(9, models=MODELS, now_s=1.0) == []


async def test_a_job_is_leased_with_its_row_unless_others_wait(
    store: JobStore, leases: JobLeases, successor: JobLeases
) -> None:
    first = await store.add(a_job(), queue_limit=9, lease=leases.lease(now_s=5.0))
    assert (first.status, first.attempts, first.started_s) == (JobStatus.IN_PROGRESS, 1, 5.0)
    assert await store.get(first.id, ACME) == first
    waiting = await store.add(a_job(), queue_limit=9)
    later = await store.add(a_job(deadline_s=1.0), queue_limit=9, lease=leases.lease(now_s=6.0))
    assert (later.status, later.attempts, later.started_s) == (JobStatus.QUEUED, 0, None)
    taken = await successor.take(9, models=MODELS, now_s=7.0)
    assert [job.id for job in taken] == [later.id, waiting.id]
    assert await leases.complete(first, [an_artifact()], (), now_s=8.0)


async def test_a_lease_that_came_with_the_row_runs_out_like_any_other(
    store: JobStore, leases: JobLeases, successor: JobLeases
) -> None:
    job = await store.add(a_job(), queue_limit=9, lease=leases.lease(now_s=0.0))
    (recovered,) = await successor.recover(now_s=LEASE_S + 1)
    assert (recovered.id, recovered.status) == (job.id, JobStatus.QUEUED)
    (again,) = await successor.take(9, models=MODELS, now_s=LEASE_S + 2)
    assert again.attempts == 2


async def test_only_jobs_of_served_models_are_leased(store: JobStore, leases: JobLeases) -> None:
    await store.add(a_job(model="other"), queue_limit=9)
    assert await leases.take(9, models=MODELS, now_s=1.0) == []


async def test_a_dead_holders_job_runs_elsewhere_and_its_late_result_is_refused(
    store: JobStore, leases: JobLeases, successor: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=0.0)
    assert await successor.recover(now_s=LEASE_S - 1) == []
    (recovered,) = await successor.recover(now_s=LEASE_S + 1)
    assert recovered.status is JobStatus.QUEUED
    (again,) = await successor.take(1, models=MODELS, now_s=LEASE_S + 2)
    assert again.attempts == 2
    assert not await leases.complete(job, [an_artifact()], (), now_s=LEASE_S + 3)
    assert await successor.complete(again, [an_artifact()], (), now_s=LEASE_S + 4)
    finished = await store.get(job.id, ACME)
    assert finished is not None
    assert (finished.status, len(finished.artifacts)) == (JobStatus.COMPLETED, 1)


async def test_a_renewed_lease_does_not_run_out(
    store: JobStore, leases: JobLeases, successor: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=0.0)
    assert (await leases.renew([job.id], now_s=20.0)).held == {job.id}
    assert await successor.recover(now_s=LEASE_S + 1) == []


async def test_what_its_runner_forgot_runs_out(store: JobStore, leases: JobLeases) -> None:
    await store.add(a_job(), queue_limit=9)
    await leases.take(1, models=MODELS, now_s=0.0)
    assert (await leases.renew([], now_s=20.0)).held == frozenset()
    assert len(await leases.recover(now_s=LEASE_S + 1)) == 1


async def test_a_job_whose_holders_keep_dying_fails_with_a_clear_error(
    store: JobStore, leases: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    for attempt in range(MAX_ATTEMPTS):
        await leases.take(1, models=MODELS, now_s=attempt * 100.0)
        (job,) = await leases.recover(now_s=attempt * 100.0 + LEASE_S + 1)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.caller_can_fix) == ("attempts_exhausted", False)
    assert "3 attempts" in job.error.message


async def test_a_job_that_got_further_has_all_its_attempts_again(
    store: JobStore, leases: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    for attempt in range(1, 2 * MAX_ATTEMPTS + 1):
        now_s = attempt * 100.0
        (job,) = await leases.take(1, models=MODELS, now_s=now_s)
        assert job.attempts == attempt
        if attempt == MAX_ATTEMPTS:
            await leases.keep(job, [a_kept_stage(attempt)], ())
        (job,) = await leases.recover(now_s=now_s + LEASE_S + 1)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert "6 attempts" in job.error.message


async def test_a_job_given_back_is_queued_and_the_try_does_not_count(
    store: JobStore, leases: JobLeases
) -> None:
    given = await store.add(a_job(), queue_limit=9)
    await leases.take(1, models=MODELS, now_s=0.0)
    assert await leases.give_all_back() == [given.id]
    (job,) = await leases.take(1, models=MODELS, now_s=1.0)
    assert job.attempts == 1


async def test_a_waiting_job_is_cancelled_at_once(store: JobStore, leases: JobLeases) -> None:
    job = await store.add(a_job(), queue_limit=9)
    cancelled = await store.request_cancel(job.id, ACME, now_s=1.0)
    assert cancelled is not None
    assert cancelled.status is JobStatus.CANCELLED
    assert await leases.take(1, models=MODELS, now_s=2.0) == []


async def test_a_running_job_is_marked_and_its_holder_told(
    store: JobStore, leases: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=0.0)
    marked = await store.request_cancel(job.id, ACME, now_s=1.0)
    assert marked is not None
    assert marked.status is JobStatus.IN_PROGRESS
    assert (await leases.renew([job.id], now_s=2.0)).to_cancel == {job.id}
    assert await leases.cancel(job, now_s=3.0)
    assert await status_of(store, job) is JobStatus.CANCELLED


async def test_a_cancelled_job_of_a_dead_holder_is_not_run_again(
    store: JobStore, leases: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=0.0)
    await store.request_cancel(job.id, ACME, now_s=1.0)
    (recovered,) = await leases.recover(now_s=LEASE_S + 1)
    assert recovered.status is JobStatus.CANCELLED


async def test_what_is_over_cannot_be_cancelled(store: JobStore, leases: JobLeases) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=0.0)
    await leases.fail(job, JobError("stage_failed", "Out of memory."), now_s=1.0)
    assert await store.request_cancel(job.id, ACME, now_s=2.0) is None
    assert await status_of(store, job) is JobStatus.FAILED


async def test_a_job_that_waited_too_long_expires(store: JobStore, leases: JobLeases) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.recover(now_s=1001.0)
    assert job.status is JobStatus.EXPIRED


async def test_an_artifact_is_found_by_its_id_with_a_large_seed(
    store: JobStore, leases: JobLeases
) -> None:
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=0.0)
    artifact = an_artifact()
    await leases.complete(job, [artifact], (), now_s=1.0)
    assert await store.artifact(artifact.id) == artifact
    assert await store.artifact(new_artifact_id()) is None
    assert await store.artifact(type(artifact.id)("art_nonsense")) is None


async def test_a_job_that_this_version_cannot_read_stops_no_others_and_ends(
    database: Database, store: JobStore, leases: JobLeases
) -> None:
    odd = await store.add(a_job(deadline_s=1.0), queue_limit=9)
    other = await store.add(a_job(deadline_s=2.0), queue_limit=9)
    newer = update(JOBS).where(JOBS.c.id == key_of(odd.id)).values(request='{"of": "a newer one"}')
    await database.execute(newer)
    (taken,) = await leases.take(9, models=MODELS, now_s=0.0)
    assert taken.id == other.id
    assert await leases.complete(taken, [], (), now_s=1.0)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert await leases.recover(now_s=attempt * (LEASE_S + 1)) == []
        assert await leases.take(9, models=MODELS, now_s=attempt * (LEASE_S + 1)) == []
    assert await store.census() == {JobStatus.IN_PROGRESS: 0, JobStatus.QUEUED: 0}


async def test_kept_stages_that_this_version_cannot_read_keep_no_job_from_being_recovered(
    database: Database, store: JobStore, leases: JobLeases
) -> None:
    odd = await store.add(a_job(), queue_limit=9)
    other = await store.add(a_job(), queue_limit=9)
    await leases.take(9, models=MODELS, now_s=0.0)
    newer = update(JOBS).where(JOBS.c.id == key_of(odd.id)).values(checkpoint='[{"of": "newer"}]')
    await database.execute(newer)
    (recovered,) = await leases.recover(now_s=LEASE_S + 1)
    assert (recovered.id, recovered.status) == (other.id, JobStatus.QUEUED)
    assert await store.census() == {JobStatus.IN_PROGRESS: 0, JobStatus.QUEUED: 2}
