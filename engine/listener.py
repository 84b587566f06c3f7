"""What an executor tells the core: devices that come and go, and launches that go on.

Takes each word to the ledger, load or launch that it concerns, and wakes the core's loop when it
may change a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.launching import Launcher
    from engine.loading import Loader
    from engine.types import DeviceId, DeviceInfo, HandoffRef, SavedLatent, TaskId

log = structlog.get_logger(__name__)


class Listener:
    """The core's `DeviceListener`.

    Args:
        wake: has the core plan anew.
        broke: told why the executor works no more.
    """

    def __init__(
        self,
        cluster: Cluster,
        loader: Loader,
        launcher: Launcher,
        *,
        wake: Callable[[], None],
        broke: Callable[[str], None],
    ) -> None:
        """Know whom what concerns."""
        self._cluster, self._loader, self._launcher = cluster, loader, launcher
        self._wake, self._broke = wake, broke

    def device_ready(self, info: DeviceInfo) -> None:
        """Open a ledger for a device whose worker came up."""
        self._cluster.add(info)
        self._loader.shortfall.restarted(info.id)
        self._wake()

    def device_lost(self, device: DeviceId, reason: str) -> None:
        """Close the ledger of a device whose worker died."""
        log.warning("device_lost", reason=reason)
        self._cluster.remove(device)
        self._wake()

    def executor_failed(self, reason: str) -> None:
        """Have the engine stop, because nothing would run any more."""
        self._broke(f"The engine stopped because its executor failed: {reason}")

    def task_progressed(self, task: TaskId, step: int, steps: int) -> None:
        """Note a finished denoise step."""
        self._launcher.note_step(task, step, steps)

    def latent_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """Note where a diffuse could be taken up again."""
        self._launcher.note_saved(launch, task, saved)

    def latent_shown(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Have a preview decoded when a device has nothing better to do."""
        self._launcher.note_latent(task, index, latent)
        self._wake()
