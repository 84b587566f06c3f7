"""A worker's communication groups: gloo between CPU processes, NCCL between GPUs.

The controller names groups and says who is in which. Here each is an island of its own, met
through a file, not part of one world that would die with any member: a process that was restarted
meets its peers again under a new name. A member that fails leaves, which closes its connections,
and whoever waits for it fails at once. NCCL does not notice; that is what `break_up` is for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from engine.messages import Seat
from engine.stages.team import Shape, Solo, Team, TeamBroke, packed, unpacked

MEETING_S = 900.0  # a peer may first have to load weights, or to finish a step or a decode
SILENCE_S = 300.0  # the last resort: a peer that neither answers nor closes its connection
_dist: Any = torch.distributed  # its stores and groups have no types
_CONNECT_S = 10.0  # once all members are there
_LOOK_S, _LOOK_RARELY_S = 0.002, 0.1
log = structlog.get_logger(__name__)


class Groups:
    """The groups of one worker, by name."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Know the folder where members meet."""
        self._folder, self._device = folder, device
        self._memberships: dict[str, Membership] = {}

    def join(self, seat: Seat) -> None:
        """Begin to meet the other members, unless that has begun."""
        if seat.group not in self._memberships:
            membership = Membership(seat, self._folder / seat.group, self._device)
            self._memberships[seat.group] = membership
            threading.Thread(target=membership.meet, daemon=True).start()

    def team(self, seat: Seat | None) -> Team:
        """Return the team of a seat when all members are there; raises `TeamBroke` if one is gone."""
        if seat is None:
            return Solo()
        self.join(seat)
        return self._memberships[seat.group].team()

    def leave(self, group: str) -> None:
        """Close the connections of a group; harmless if it is unknown."""
        if (membership := self._memberships.pop(group, None)) is not None:
            membership.leave()

    def break_up(self, group: str) -> None:
        """Stop all waiting in a group; may be called from any thread."""
        if (membership := self._memberships.get(group)) is not None:
            membership.break_up()


class Membership:
    """One seat, from the first look for the others until it is left."""

    def __init__(self, seat: Seat, path: Path, device: torch.device) -> None:
        """Nothing happens before `meet`."""
        self._seat, self._path, self._device = seat, path, device
        self._broken = threading.Event()
        self._team: Future[Wire] = Future()

    def meet(self) -> None:
        """Wait for the other members and connect to them."""
        try:
            self._team.set_result(self._connect())
        except Exception as error:  # noqa: BLE001 - whoever waits for the team is told
            self._team.set_exception(TeamBroke(f"{self._seat.group} could not meet: {error}"))

    def _connect(self) -> Wire:
        store = _dist.FileStore(str(self._path), self._seat.size)
        store.set_timeout(timedelta(seconds=_CONNECT_S))
        self._await_all(store)
        control = _gloo(_dist.PrefixStore("control", store), self._seat)
        data = control
        if self._device.type == "cuda":
            data = _nccl(_dist.PrefixStore("data", store), self._seat)
        return Wire(self._seat, control, data, self._broken)

    def _await_all(self, store: Any) -> None:
        """Return when all members are there: connecting waits for them deaf to everything."""
        store.set(f"here/{self._seat.rank}", "")
        here = [f"here/{rank}" for rank in range(self._seat.size)]
        until_s, pause_s = time.monotonic() + MEETING_S, _LOOK_S
        while not store.check(here):
            if self._broken.is_set() or time.monotonic() > until_s:
                missing = [rank for rank, key in enumerate(here) if not store.check([key])]
                message = f"ranks {missing} did not come"
                raise TeamBroke(message)
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, _LOOK_RARELY_S)

    def team(self) -> Team:
        """Return the connected team, or raise why it never was one."""
        return self._team.result()

    def break_up(self) -> None:
        """Let everything fail that waits for another member."""
        self._broken.set()
        if self._team.done() and self._team.exception() is None:
            self._team.result().abort()

    def leave(self) -> None:
        """Close the connections, or stop looking for the others."""
        self._broken.set()
        self._team.add_done_callback(_close)
        self._path.unlink(missing_ok=True)


def _close(team: Future[Wire]) -> None:
    if team.exception() is None:
        team.result().close()


class Wire:
    """A `Team` over processes: control on gloo, tensors on gloo or NCCL."""

    def __init__(self, seat: Seat, control: Any, data: Any, broken: threading.Event) -> None:
        """Take connected groups; they are one and the same on CPU."""
        self.rank, self.size = seat.rank, seat.size
        self._name, self._control, self._data = seat.group, control, data
        self._broken, self._has_met = broken, control is data

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Send each member its part in one all-to-all; see `Team.exchange`."""
        sent = packed(parts)
        counts = [prod(shape) for shape in shapes]
        received = sent.new_empty(sum(counts))
        if not self._has_met:
            self._meet()
        with self._talking():
            splits = counts, [part.numel() for part in parts]
            self._data.alltoall_base(received, sent, *splits).wait()
        return unpacked(received, shapes)

    def _meet(self) -> None:
        """Wait for all members before the first exchange over NCCL, which connects only then.

        It waits for the last one no longer than connecting may take (`_CONNECT_S`), and a member
        whose kernels are run for the first time, or whose part is larger, may take longer.
        """
        with self._talking():
            self._control.barrier().wait()
        self._has_met = True

    def agree(self, code: int) -> int:
        """Return the leader's code."""
        box = torch.tensor([code])
        with self._talking():
            self._control.broadcast(box, 0).wait()
        return int(box.item())

    @contextmanager
    def _talking(self) -> Iterator[None]:
        if self._control is None or self._broken.is_set():
            message = f"{self._name} was broken up."
            raise TeamBroke(message)
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what gloo and NCCL raise for everything
            message = f"{self._name} broke: {str(error).splitlines()[0]}"
            raise TeamBroke(message) from error

    def abort(self) -> None:
        """End kernels that wait for a peer; gloo's connections notice by themselves."""
        if self._data is not self._control and self._data is not None:
            self._data.abort()

    def close(self) -> None:
        """Drop the connections, which the other members notice."""
        self.abort()
        self._control = self._data = None


def _gloo(store: Any, seat: Seat) -> Any:
    options = _dist.ProcessGroupGloo._Options()  # noqa: SLF001 - the only way to name the interface
    options._devices = [_dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]  # noqa: SLF001
    options._timeout = timedelta(seconds=SILENCE_S)  # noqa: SLF001
    options._threads = 1  # noqa: SLF001 - one collective at a time
    return _dist.ProcessGroupGloo(store, seat.rank, seat.size, options)


def _nccl(store: Any, seat: Seat) -> Any:
    options = _dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=SILENCE_S)  # noqa: SLF001
    return _dist.ProcessGroupNCCL(store, seat.rank, seat.size, options)
