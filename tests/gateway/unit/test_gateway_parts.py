"""Keys, signatures, states, sizes of work: the pure parts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine import RequestId, Shape
from engine.cards import Limits
from gateway.auth.keys import mask, parse_keys
from gateway.auth.principal import Principal, TenantId
from gateway.errors import RequestError
from gateway.jobs.record import ArtifactId, JobId, key_of, new_job_id
from gateway.jobs.state import ACTIVE, TERMINAL, JobStatus, lost_its_holder, sources
from gateway.resolve import fitting_size
from gateway.schemas.images import ImageGenerationBody
from gateway.storage.signing import Signer, Verdict, offered_secret
from gateway.translate import Origin, generation_request, resolved_quality, usage_of
from gateway.wire import decode
from tests.support.fake_engine import spec_of

ARTIFACT = ArtifactId("art_1")
SPEC = spec_of()
ORIGIN = Origin(job=JobId("job_1"), tenant="acme", arrival_s=10.0, random_seed=77)


def test_a_key_leads_to_its_tenant() -> None:
    ring = parse_keys("acme:sk-acme-1234,sk-plain-1234")
    assert ring.principal("sk-acme-1234") == Principal(TenantId("acme"))
    assert ring.principal("sk-plain-1234") == Principal(TenantId("default"))
    assert ring.principal("acme:sk-acme-1234") is None


def test_no_key_is_kept_in_clear() -> None:
    ring = parse_keys("acme:sk-acme-1234")
    assert "sk-acme" not in repr(ring.keys)


@pytest.mark.parametrize("text", ["sk-1", "acme:sk-1", "b c:sk-acme-1234", "sk acme 1234"])
def test_a_malformed_key_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match="entry 1") as refusal:
        parse_keys(text)
    assert text.rpartition(":")[2] not in str(refusal.value)


def test_the_same_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_keys("a:sk-acme-1234,b:sk-acme-1234")


@pytest.mark.parametrize(("key", "shown"), [("sk-1", "****"), ("sk-someone-9876", "********9876")])
def test_a_masked_key_shows_its_end_at_most(key: str, shown: str) -> None:
    assert mask(key) == shown


def test_a_signature_is_good_until_it_expires() -> None:
    signer = Signer(b"s" * 32)
    link = signer.sign(ARTIFACT, expires_s=100)
    assert signer.check(link, now_s=99.9) is Verdict.VALID
    assert signer.check(link, now_s=100.0) is Verdict.EXPIRED


@pytest.mark.parametrize("change", [{"expires_s": 999}, {"artifact": "art_2"}, {"signature": "é"}])
def test_a_changed_link_is_forged(change: dict[str, object]) -> None:
    signer = Signer(b"s" * 32)
    link = msgspec.structs.replace(signer.sign(ARTIFACT, expires_s=100), **change)
    assert signer.check(link, now_s=1.0) is Verdict.FORGED


def test_the_secret_of_an_earlier_version_is_offered_and_without_one_a_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "signing.key"
    assert len(offered_secret(path)) == 32
    assert offered_secret(path) != offered_secret(path)
    path.write_bytes(b"o" * 32)
    assert offered_secret(path) == b"o" * 32


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(b"short")
    with pytest.raises(ValueError, match="delete it"):
        offered_secret(tmp_path / "signing.key")


def test_nothing_follows_a_terminal_status() -> None:
    assert all(not (sources(status) & TERMINAL) for status in JobStatus)


def test_every_status_can_be_reached_or_is_the_first() -> None:
    assert all(sources(status) <= ACTIVE and sources(status) for status in JobStatus)


@pytest.mark.parametrize(
    ("attempts", "cancel", "after"),
    [(1, False, "queued"), (2, False, "queued"), (3, False, "failed"), (1, True, "cancelled")],
)
def test_what_becomes_of_a_job_without_a_holder(attempts: int, after: str, *, cancel: bool) -> None:
    status = lost_its_holder(attempts=attempts, max_attempts=3, cancel_requested=cancel)
    assert status.value == after


def test_an_id_leads_back_to_its_key() -> None:
    job = new_job_id()
    key = key_of(job)
    assert key is not None
    assert job == f"job_{key.hex}"


@pytest.mark.parametrize("text", ["job_", "job_zz", "", "video_0123", "0123"])
def test_nonsense_is_no_id(text: str) -> None:
    assert key_of(JobId(text)) is None


def body(**fields: object) -> ImageGenerationBody:
    return msgspec.convert({"prompt": "a red circle", **fields}, ImageGenerationBody)


@pytest.mark.parametrize(
    ("quality", "steps", "resolved"),
    [
        (None, 8, "medium"),
        ("auto", 8, "medium"),
        ("standard", 8, "medium"),
        ("low", 4, "low"),
        ("high", 10, "high"),  # 1.5 times eight, capped by the model's limit of ten
        ("hd", 10, "high"),
    ],
)
def test_quality_scales_the_steps(quality: str | None, steps: int, resolved: str) -> None:
    wanted = body(quality=quality)
    request = generation_request(wanted, {SPEC.id: SPEC}, ORIGIN).request
    assert (request.steps, resolved_quality(wanted)) == (steps, resolved)


def test_explicit_steps_win_over_quality() -> None:
    request = generation_request(
        body(quality="high", num_inference_steps=1), {SPEC.id: SPEC}, ORIGIN
    ).request
    assert request.steps == 1


def test_a_request_carries_its_origin() -> None:
    request = generation_request(body(), {SPEC.id: SPEC}, ORIGIN).request
    assert (request.id, request.tenant) == (RequestId("job_1"), "acme")
    assert (request.arrival_s, request.seed) == (10.0, 77)


def test_an_image_token_is_rounded_up_per_image() -> None:
    request = generation_request(body(size="16x32", n=3), {SPEC.id: SPEC}, ORIGIN).request
    assert usage_of(request).output_tokens == 6


def test_a_bad_choice_lists_the_good_ones() -> None:
    with pytest.raises(RequestError, match="'jpeg', 'png', 'webp'"):
        decode(b'{"prompt": "x", "output_format": "gif"}', ImageGenerationBody)


@pytest.mark.parametrize(
    ("picture", "drawn"), [((100, 50), Shape(192, 96)), ((160, 160), Shape(160, 160))]
)
def test_a_picture_below_the_models_least_size_is_drawn_larger(
    picture: tuple[int, int], drawn: Shape
) -> None:
    spec = msgspec.structs.replace(spec_of(), limits=Limits(min_pixels=128 * 128))
    assert fitting_size(*picture, spec) == drawn
