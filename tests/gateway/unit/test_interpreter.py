"""How a server process sets its interpreter: nothing that lives on is looked at again and again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from gateway import interpreter


@pytest.fixture
def settings() -> Iterator[None]:
    switch_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(switch_s)


@pytest.mark.usefixtures("settings")
def test_what_was_made_before_is_collected_no_more_and_what_comes_later_is() -> None:
    before = gc.get_freeze_count()
    interpreter.serve_calls()
    assert gc.get_freeze_count() > before
    later: list[object] = []
    later.append(later)
    assert any(known is later for known in gc.get_objects())
    assert gc.isenabled()


@pytest.mark.usefixtures("settings")
def test_a_thread_that_wants_to_go_on_waits_less_than_a_millisecond() -> None:
    interpreter.serve_calls()
    assert sys.getswitchinterval() < 0.001
