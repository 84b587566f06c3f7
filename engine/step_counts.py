"""How many denoise steps of a request's diffuses are done, as far as their workers have told."""

from __future__ import annotations

from engine.graph import NodeState
from engine.types import NodeId


class StepCounts:
    """The steps of every diffuse that runs."""

    def __init__(self) -> None:
        """Begin with none."""
        self._done: dict[NodeId, int] = {}
        self._of: dict[NodeId, int] = {}

    def begin(self, node: NodeId) -> None:
        """Forget what an earlier attempt had counted."""
        self._done.pop(node, None)

    def note(self, node: NodeId, step: int, steps: int) -> None:
        """Note that step `step` of `steps` is done, as the worker counts them."""
        self._done[node], self._of[node] = step, steps

    def share(self, node: NodeId, state: NodeState, saved: float) -> float:
        """Return the share of a diffuse that is done, 0 to 1; `saved` is that of its saved latent."""
        match state:
            case NodeState.DONE:
                return 1.0
            case NodeState.RUNNING if node in self._done:
                return self._done[node] / self._of[node]
            case NodeState.RUNNING | NodeState.PENDING:
                return saved
