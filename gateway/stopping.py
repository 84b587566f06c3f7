"""Hearing of the end in time.

A server that was told to stop waits for the requests in progress before it ends the app's
lifespan, and those wait for their pictures. So the app listens to the signals itself and sends
the callers away first.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PARENT_VARIABLE = "TRIDENT_SERVE_PID"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


@contextmanager
def on_stop_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on the loop at SIGINT and SIGTERM, besides what the server does with them.

    The server's own handlers are unharmed: asyncio learns of signals through a wake-up file
    descriptor, which is written whatever handler is installed here. One signal is enough: a
    second one, such as the parent's SIGTERM after a terminal's SIGINT, deadlocks granian 2.8.
    """
    loop = asyncio.get_running_loop()

    def notice(_signal: int, _frame: FrameType | None) -> None:
        ignore_further_signals()
        loop.call_soon_threadsafe(callback)

    for number in STOP_SIGNALS:
        signal.signal(number, notice)
    yield


def ignore_further_signals() -> None:
    """Let nothing interrupt an orderly stop, whose time is bounded anyway."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies; on Linux only.

    A server process that outlived a killed `trident serve` would keep the port and the engine.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(PARENT_VARIABLE) not in {None, str(os.getppid())}:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
