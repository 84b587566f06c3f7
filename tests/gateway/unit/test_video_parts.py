"""Lengths, states and byte ranges of videos: the pure parts."""

from __future__ import annotations

import msgspec
import pytest

from engine import GenerationRequest, ModelId, RequestId, Shape
from engine.types import MediaFormat
from gateway.auth.principal import TenantId
from gateway.byte_ranges import ByteSpan, UnsatisfiableError, span_of
from gateway.errors import RequestError
from gateway.jobs.record import Job, JobId, job_of_video, new_job_id, video_id_of
from gateway.jobs.state import JobStatus
from gateway.resolve import Origin
from gateway.schemas.videos import VideoBody
from gateway.translate_videos import decimal, poll_after_ms, video_of, video_request
from tests.support.fake_engine import video_spec_of

SPEC = video_spec_of()
ORIGIN = Origin(job=JobId("job_1"), tenant="acme", arrival_s=10.0, random_seed=77)


def frames_of(**fields: object) -> int:
    body = msgspec.convert({"prompt": "x", **fields}, VideoBody)
    return video_request(body, {SPEC.id: SPEC}, ORIGIN).request.shape.frames


def a_record(status: JobStatus = JobStatus.IN_PROGRESS, **changes: object) -> Job:
    job = Job(
        id=new_job_id(),
        tenant=TenantId("acme"),
        status=status,
        request=GenerationRequest(
            id=RequestId("job_1"),
            model=ModelId("motion"),
            prompt="x",
            shape=Shape(64, 48, 18),
            fps=12,
            steps=4,
            guidance_scale=1.0,
            seed=1,
            media=MediaFormat.MP4,
            arrival_s=10.5,
            deadline_s=20.0,
        ),
        request_id="req_1",
        traceparent=None,
        attempts=1,
        cancel_requested=False,
        started_s=11.0,
        finished_s=12.5,
        expires_at_s=3610.5,
        progress=40,
        error=None,
        timeline=(),
        artifacts=(),
    )
    return msgspec.structs.replace(job, **changes)


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        ({}, 16),
        ({"fps": 4}, 16),
        ({"seconds": "4"}, 32),
        ({"seconds": "0.01"}, 1),
        ({"seconds": "1.06"}, 8),
        ({"seconds": 1.07}, 9),
        ({"seconds": "1", "fps": 24}, 24),
        ({"frames": 5}, 5),
    ],
)
def test_seconds_times_frames_per_second_are_frames(fields: dict[str, object], frames: int) -> None:
    assert frames_of(**fields) == frames


def test_the_most_seconds_that_are_named_are_accepted() -> None:
    with pytest.raises(RequestError, match=r"at most 4\.571 seconds"):
        frames_of(seconds="5", fps=7)
    assert frames_of(seconds="4.571", fps=7) == 32


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2"), (1.5, "1.5"), (16 / 7, "2.286"), (10.0, "10"), (0.125, "0.125")]
)
def test_seconds_are_written_without_zeros_at_the_end(value: float, text: str) -> None:
    assert decimal(value) == text


@pytest.mark.parametrize(
    ("status", "shown", "progress", "code"),
    [
        (JobStatus.QUEUED, "in_progress", 40, None),  # it has started before
        (JobStatus.IN_PROGRESS, "in_progress", 40, None),
        (JobStatus.COMPLETED, "completed", 100, None),
        (JobStatus.CANCELLED, "failed", 40, "cancelled"),
        (JobStatus.EXPIRED, "failed", 40, "expired"),
    ],
)
def test_a_jobs_status_in_openais_words(
    status: JobStatus, shown: str, progress: int, code: str | None
) -> None:
    video = video_of(a_record(status))
    assert (video.status, video.progress) == (shown, progress)
    assert (video.error and video.error.code) == code
    assert (video.seconds, video.size, video.created_at) == ("1.5", "64x48", 10)


def test_only_a_completed_video_has_a_time_of_completion() -> None:
    assert video_of(a_record(JobStatus.COMPLETED)).completed_at == 12
    assert video_of(a_record(JobStatus.EXPIRED)).completed_at is None


@pytest.mark.parametrize(
    ("eta_s", "status", "poll_ms"),
    [
        (None, JobStatus.IN_PROGRESS, 1000),
        (30.0, JobStatus.IN_PROGRESS, 3000),  # a tenth of what is left
        (0.1, JobStatus.IN_PROGRESS, 200),
        (9e9, JobStatus.QUEUED, 10_000),
        (50.0, JobStatus.COMPLETED, 1000),
    ],
)
def test_the_longer_the_rest_the_later_the_next_question(
    eta_s: float | None, status: JobStatus, poll_ms: int
) -> None:
    assert poll_after_ms(a_record(status), eta_s=eta_s) == poll_ms


def test_a_videos_id_leads_back_to_its_job() -> None:
    job = new_job_id()
    assert job_of_video(video_id_of(job)) == job
    assert video_id_of(job).startswith("video_")


@pytest.mark.parametrize("text", ["", "video_", "video_" + "A" * 32, "job_" + "0" * 32, "0" * 32])
def test_nonsense_is_no_videos_id(text: str) -> None:
    assert job_of_video(text) is None


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-9", ByteSpan(0, 10)),
        ("Bytes= 2-", ByteSpan(2, 10)),
        ("bytes=-3", ByteSpan(7, 10)),
        ("bytes=5-" + "9" * 18, ByteSpan(5, 10)),
        ("bytes=" + "9" * 30 + "-", None),
        ("bytes=٣-", None),
    ],
)
def test_a_range_header_is_read(header: str | None, span: ByteSpan | None) -> None:
    assert span_of(header, 10) == span


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=-1", 0)])
def test_no_byte_in_the_range_is_an_error(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableError):
        span_of(header, size)
