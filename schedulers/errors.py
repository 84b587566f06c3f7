"""Everything the schedulers raise on purpose.

SchedulerError
├── TraceError      a trace or an event file cannot be used (names file, line, field)
└── ProfileError    a profile cannot be used (names file, line, field)
"""

from __future__ import annotations


class SchedulerError(Exception):
    """Base of all errors of this package; the message is a sentence a stranger can act on."""


class TraceError(SchedulerError):
    """A trace or an event file is malformed; the message names file, line and field."""


class ProfileError(SchedulerError):
    """A profile is malformed or lacks what is asked of it; the message names file, line and field."""
