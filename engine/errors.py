"""Everything the engine raises on purpose.

EngineError
├── PipelineError            a model folder cannot be read or is of no known family
├── InvalidRequestError      the model cannot do what the request asks (names the parameter)
├── GraphError               a stage graph is malformed
├── EngineBusyError          the bounded set of requests in the engine is full
├── EngineClosedError        the engine is shutting down; the request can be tried elsewhere
│   └── EngineCrashedError       it stopped on an internal error while it held the request
├── RequestCancelledError    the request was cancelled by its owner
├── RequestImpossibleError   no device of this deployment can ever run a stage of the request
├── RequestRefusedError      the request could only end after its deadline, and is not served
├── StageFailedError         a stage failed on a live worker (out of memory, bad weights, bug)
│   └── NotFiniteError           its result holds NaN or infinite numbers
├── WorkerLostError          the worker process died while it held the task
│   ├── TeamBrokenError          the team broke under a member that did nothing wrong
│   └── HandoffLostError         what the task was to begin with went with another node
└── LedgerError              an accounting invariant broke: a bug, never a user's mistake

Every error carries a stable `code`; messages are sentences a stranger can act on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.types import DeviceId, HandoffRef


class EngineError(Exception):
    """Base of all engine errors."""

    code = "engine_error"


class PipelineError(EngineError):
    """A model folder cannot be served; the message names the folder and the file."""

    code = "model_unreadable"


class InvalidRequestError(EngineError):
    """The model cannot honour a parameter of the request.

    Attributes:
        param: name of the offending parameter as the API spells it.
    """

    code = "invalid_value"

    def __init__(self, message: str, *, param: str) -> None:
        """Remember which parameter to blame."""
        super().__init__(message)
        self.param = param


class GraphError(EngineError):
    """A stage graph has a cycle, a dangling edge, a duplicate or an unreachable node."""

    code = "graph_invalid"


class EngineBusyError(EngineError):
    """The engine already holds as many requests as it may."""

    code = "engine_busy"


class EngineClosedError(EngineError):
    """The engine is shutting down."""

    code = "engine_closed"


class EngineCrashedError(EngineClosedError):
    """The engine stopped on an internal error, which this request may have caused."""

    code = "engine_crashed"


class RequestCancelledError(EngineError):
    """The request was cancelled before it finished."""

    code = "cancelled"


class RequestImpossibleError(EngineError):
    """A stage of the request fits on no device, however long it waits."""

    code = "request_does_not_fit"


class RequestRefusedError(EngineError):
    """The request cannot be on time any more, and the policy refuses what would be late."""

    code = "deadline_unreachable"


class StageFailedError(EngineError):
    """A stage raised on a live worker.

    Attributes:
        retryable: whether another attempt may succeed (out of memory: yes; bad weights: no).
    """

    code = "stage_failed"

    def __init__(self, message: str, *, retryable: bool) -> None:
        """Remember whether a retry makes sense."""
        super().__init__(message)
        self.retryable = retryable


class NotFiniteError(StageFailedError):
    """A stage gave NaN or infinite numbers: a fault of the device, the weights or the request."""

    code = "result_not_finite"

    def __init__(self, message: str) -> None:
        """Another device may do better."""
        super().__init__(message, retryable=True)


class WorkerLostError(EngineError):
    """The worker process of a device died; its tasks can be retried elsewhere.

    Attributes:
        began: it had begun with what was asked, which may be why it died.
        devices: whose processes died of themselves, where whoever raises knows it.
    """

    code = "worker_lost"

    def __init__(
        self, message: str, *, began: bool = True, devices: tuple[DeviceId, ...] = ()
    ) -> None:
        """Remember whether the task may have had a part in it, and where."""
        super().__init__(message)
        self.began, self.devices = began, devices


class TeamBrokenError(WorkerLostError):
    """A member of a team lost its peers in mid-launch; the cause is told by another member."""

    code = "team_broken"


class HandoffLostError(WorkerLostError):
    """Inputs of a launch lay on a node that is gone; what made them has to run again.

    Attributes:
        lost: the hand-offs that are no more.
    """

    code = "handoff_lost"

    def __init__(self, message: str, lost: tuple[HandoffRef, ...]) -> None:
        """Nobody has begun with the task."""
        super().__init__(message, began=False)
        self.lost = lost


class LedgerError(EngineError):
    """Memory, team or hand-off accounting contradicts itself."""

    code = "ledger_broken"
