"""How the interpreter of a server process is set, so that no request waits for its housekeeping.

Both figures are for a process that answers calls and has other threads (the database, files): the
defaults are for programs that compute.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

# A thread that wants to go on (a commit is done, a body has come) waits so long for the one that
# runs; 5 ms by default.
_SWITCH_S: Final = 0.000_5
# Objects made and not yet freed before the collector looks for cycles among the newest; 700 by
# default, which the calls in progress have by themselves.
_YOUNG_OBJECTS: Final = 10_000


def serve_calls() -> None:
    """Set both, and take what has been made so far out of the collector's sight.

    To be called once everything is loaded: 170,000 objects that live as long as the process,
    and a full collection that looks at them stops all calls for a tenth of a second.
    """
    sys.setswitchinterval(_SWITCH_S)
    _, *older = gc.get_threshold()
    gc.set_threshold(_YOUNG_OBJECTS, *older)
    gc.collect()
    gc.freeze()
