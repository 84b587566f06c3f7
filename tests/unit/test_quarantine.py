"""Marks, stays and probation of devices on which launches fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.quarantine import FIRST_S, LONGEST_S, MARKS, SUCCESSES_PER_MARK, Quarantine
from engine.types import DeviceId, RequestId

A = DeviceId("a")


def marked(quarantine: Quarantine, *requests: str, now_s: float = 0.0) -> bool:
    return [quarantine.mark(A, RequestId(r), now_s, spare=False) for r in requests][-1]


def test_three_requests_put_a_device_away_and_time_lets_it_out() -> None:
    quarantine = Quarantine()
    assert not marked(quarantine, "1", "2")
    assert marked(quarantine, "3", now_s=10.0)
    assert quarantine.devices(39.9) == {A: 10.0 + FIRST_S}
    assert quarantine.devices(40.0) == {}


def test_one_request_that_fails_twice_puts_a_device_away_until_it_fails_elsewhere_too() -> None:
    quarantine = Quarantine()
    assert not marked(quarantine, "poison")
    assert marked(quarantine, "poison")
    quarantine.acquit(RequestId("poison"))
    assert quarantine.devices(0.0) == {}
    assert not marked(quarantine, "1", "2")


def test_on_probation_one_more_failure_doubles_the_stay_up_to_a_bound() -> None:
    quarantine, now_s, stays = Quarantine(), 0.0, []
    marked(quarantine, "1", "2")
    for number in range(1100):  # more doublings than a float has room for
        assert marked(quarantine, f"n{number}", now_s=now_s)
        stays.append(quarantine.devices(now_s)[A] - now_s)
        now_s += stays[-1]
        assert quarantine.devices(now_s) == {}
    assert stays[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert stays[-1] == LONGEST_S


def test_successes_wear_marks_off_and_trust_is_whole_again() -> None:
    quarantine = Quarantine()
    marked(quarantine, "1", "2", "3")
    quarantine.devices(FIRST_S)
    for _ in range(MARKS * SUCCESSES_PER_MARK):
        quarantine.succeeded(A)
    assert not marked(quarantine, "4", "5", now_s=100.0)
    assert marked(quarantine, "6", now_s=100.0)
    assert quarantine.devices(100.0) == {A: 100.0 + FIRST_S}


def test_a_request_that_fails_everywhere_is_held_against_no_device() -> None:
    quarantine = Quarantine()
    marked(quarantine, "1", "poison", "2")
    quarantine.acquit(RequestId("poison"))
    assert quarantine.devices(0.0) == {}
    assert marked(quarantine, "3")
    assert quarantine.devices(0.0) == {A: FIRST_S}


def test_the_last_device_stays_in_service_whatever_it_does() -> None:
    quarantine = Quarantine()
    marks = [quarantine.mark(A, RequestId(str(i)), 0.0, spare=True) for i in range(9)]
    assert not any(marks)
    quarantine.check_integrity()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mark", "spare", "succeeded", "acquit", "wait"]),
            st.sampled_from("ab"),
            st.integers(0, 5),
        )
    )
)
def test_whatever_happens_the_books_agree(events: list[tuple[str, str, int]]) -> None:
    quarantine, now_s = Quarantine(), 0.0
    for what, name, number in events:
        device, request = DeviceId(name), RequestId(str(number))
        out = quarantine.devices(now_s)
        match what:
            case "mark" | "spare":
                put = quarantine.mark(device, request, now_s, spare=what == "spare")
                assert put == (device in quarantine.devices(now_s) and device not in out)
                assert not (put and what == "spare")
            case "succeeded":
                quarantine.succeeded(device)
            case "acquit":
                quarantine.acquit(request)
            case "wait":
                now_s += 20.0 * number
        quarantine.check_integrity()
        assert all(until_s > now_s for until_s in quarantine.devices(now_s).values())
