"""Logging for all processes: structlog events and the standard library's, in one format.

JSON lines by default, readable lines on a terminal. Ids that are bound to the context (request,
job, tenant) and the ids of the current span are on every line. Prompts and keys are on none.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from structlog.typing import EventDict, Processor, WrappedLogger

# A last net: nobody should log these, and if somebody does, their values are not written.
SECRET_FIELDS: Final = frozenset(
    {"prompt", "negative_prompt", "authorization", "api_key", "key", "secret"}
)
REDACTED: Final = "[redacted]"
_JOB, _CALL, _TRACE = "job_id", "request_id", "trace_id"


def configure_logging(log_format: str = "auto", *, level: int = logging.INFO) -> None:
    """Set up structlog and the root logger of this process.

    Args:
        log_format: `json`, `console`, or `auto`: console if stderr is a terminal.
        level: what is less urgent is dropped.
    """
    readable = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared = _shared_processors()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=_rendering(readable=readable)
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # These are chatty at INFO and say nothing that our own events do not.
    for name in ("sqlalchemy.engine", "httpx"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def granian_log_config() -> dict[str, object]:
    """Return a `logging.config` dictionary that sends granian's lines to our root handler."""
    passing_on = {"handlers": [], "level": "WARNING", "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "loggers": {"_granian": passing_on, "granian.access": passing_on},
    }


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace_ids,
        redact,
        structlog.processors.StackInfoRenderer(),
    ]


def _rendering(*, readable: bool) -> list[Processor]:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if readable:
        # Not rich's tracebacks: they print local variables, prompts among them.
        plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [remove_meta, plain]
    return [
        remove_meta,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]


class Asked(Protocol):
    """A request that a stage works for."""

    @property
    def id(self) -> str:
        """Its job."""
        ...

    @property
    def traceparent(self) -> str | None:
        """Its trace, as W3C writes it."""
        ...

    @property
    def http_request(self) -> str | None:
        """The call that asked for it."""
        ...


def ids_of(requests: Iterable[Asked]) -> dict[str, str]:
    """Return what to bind where stages run: jobs, calls, and the trace of the first.

    Several requests share a launch; a request may come several times.
    """
    known = {request.id: request for request in requests}
    calls = dict.fromkeys(r.http_request for r in known.values() if r.http_request)
    traces = [p.split("-")[1] for r in known.values() if (p := r.traceparent) and p.count("-") > 1]
    found = {_JOB: ",".join(known), _CALL: ",".join(calls), _TRACE: traces[0] if traces else ""}
    return {name: ids for name, ids in found.items() if ids}


def bound_ids() -> dict[str, str]:
    """Return the ids that `ids_of` gave and that are bound here, for another process to bind."""
    bound = structlog.contextvars.get_contextvars()
    return {name: str(bound[name]) for name in (_JOB, _CALL, _TRACE) if bound.get(name)}


def add_trace_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the ids of the current span, if there is one that records."""
    span = trace.get_current_span()
    if span.is_recording():
        context = span.get_span_context()
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank the values of fields that must not be written, and drop ids that are unset."""
    return {
        name: REDACTED if name in SECRET_FIELDS else value
        for name, value in event.items()
        if value is not None or name == "event"
    }
