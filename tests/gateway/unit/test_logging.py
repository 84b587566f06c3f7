"""What reaches the log, and what must not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from observability.logging import REDACTED, configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def _last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line = capsys.readouterr().err.strip().splitlines()[-1]
    fields: dict[str, object] = json.loads(line)
    return fields


def test_bound_ids_are_on_the_lines_of_both_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    with structlog.contextvars.bound_contextvars(request_id="req_1", tenant=None):
        structlog.get_logger("x").info("hello", size=3)
        ours = _last_line(capsys)
        logging.getLogger("granian").warning("theirs")
        theirs = _last_line(capsys)
    assert (ours["event"], ours["request_id"], ours["size"]) == ("hello", "req_1", 3)
    assert (theirs["event"], theirs["request_id"]) == ("theirs", "req_1")
    assert "tenant" not in ours


def test_prompts_and_keys_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    structlog.get_logger("x").info("oops", prompt="a secret", api_key="sk-1")
    line = _last_line(capsys)
    assert (line["prompt"], line["api_key"]) == (REDACTED, REDACTED)


def test_a_recording_span_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    with TracerProvider().get_tracer("x").start_as_current_span("s") as span:
        structlog.get_logger("x").info("inside")
    assert _last_line(capsys)["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_a_terminal_gets_readable_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console")
    structlog.get_logger("x").info("hello")
    assert "hello" in capsys.readouterr().err
