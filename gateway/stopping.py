"""Hearing of the end in time.

A server that was told to stop waits for the requests in progress before it ends the app's
lifespan, and those wait for their pictures. So the app listens to the signals itself: it takes no
new work, lets what runs finish for a while, and sends the other callers away.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

PARENT_VARIABLE = "TRIDENT_SERVE_PID"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def on_stop_signal(callback: Callable[[], None]) -> None:
    """Call `callback` on the running loop at the first SIGINT or SIGTERM, then the server's handler.

    Later signals are dropped: a second one, such as the parent's SIGTERM after a terminal's
    SIGINT, deadlocks granian 2.8 in its own handler.
    """
    loop = asyncio.get_running_loop()
    # asyncio offers no way to ask for the handler that granian has set before us.
    handlers: dict[int, asyncio.Handle] = getattr(loop, "_signal_handlers", {})
    before = {number: handlers.get(number) for number in STOP_SIGNALS}
    stopping = False

    def first(number: signal.Signals) -> None:
        nonlocal stopping
        if stopping:
            return
        stopping = True
        callback()
        if (handle := before[number]) is not None:
            handle._run()  # noqa: SLF001 - as the loop itself would have

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, first, number)


def ignore_further_signals() -> None:
    """Let nothing interrupt an orderly stop, whose time is bounded anyway.

    Not SIG_IGN: Python raises OSError for a signal that arrived just before it was ignored.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _do_nothing)


def _do_nothing(_signal: int, _frame: FrameType | None) -> None:
    pass


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies; on Linux only.

    A server process that outlived a killed `trident serve` would keep the port and the engine.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(PARENT_VARIABLE) not in {None, str(os.getppid())}:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
