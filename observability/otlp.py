"""Whether a signal leaves this machine: only if the operator says where to.

The standard variables of OpenTelemetry: an endpoint, for all signals or for one, switches an exporter
on; `OTEL_TRACES_EXPORTER=none` and `OTEL_METRICS_EXPORTER=none` switch one off again. OTLP over HTTP
is spoken, which is `OTEL_EXPORTER_OTLP_PROTOCOL`'s `http/protobuf`.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Final

import structlog

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_SPOKEN: Final = "http/protobuf"
log = structlog.get_logger(__name__)


class Signal(StrEnum):
    """What is exported, as variables name it."""

    TRACES = "TRACES"
    METRICS = "METRICS"


def is_exported(signal: Signal) -> bool:
    """Return whether `signal` has an endpoint and is not switched off."""
    names = (_ENDPOINT, f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    is_off = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() == "none"
    if is_off or not any(os.environ.get(name) for name in names):
        return False
    _expect_spoken(signal)
    return True


def _expect_spoken(signal: Signal) -> None:
    general = os.environ.get(_PROTOCOL, _SPOKEN)
    wanted = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", general).strip()
    if wanted and wanted != _SPOKEN:
        log.warning(
            "otlp_protocol_not_spoken",
            signal=signal.value.lower(),
            protocol=wanted,
            advice=f"We speak {_SPOKEN}: give the endpoint that takes it, usually port 4318.",
        )
