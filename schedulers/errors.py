"""Everything the schedulers raise on purpose.

SchedulerError
├── ProfileError     a profile cannot be read, or says something that cannot be
└── TraceError       a trace of requests cannot be read

Every error carries a stable `code`; messages name the file, the place in it and what is wrong.
"""

from __future__ import annotations


class SchedulerError(Exception):
    """Base of all errors of this package."""

    code = "scheduler_error"


class ProfileError(SchedulerError):
    """A profile is missing or malformed; the message names the file and the line or field."""

    code = "profile_unreadable"


class TraceError(SchedulerError):
    """A trace is missing or malformed; the message names the file, the line and the field."""

    code = "trace_unreadable"
