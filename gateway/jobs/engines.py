"""Which engine processes there are: each tells the table of itself, gateways read it.

So a gateway needs no model folders: it offers what engines serve. Whether an engine lives is seen
by when it was last heard of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import structlog
from sqlalchemy import Table, delete, insert, or_, select, update

from engine import PipelineSpec
from gateway.db.models import EngineRow

if TYPE_CHECKING:
    from sqlalchemy import Row

    from gateway.db.session import Database

# A model stays on offer for so long after its last engine died: its jobs wait for the next one.
REMEMBERED_S: Final = 3600.0
_log = structlog.get_logger(__name__)
_ENGINES: Final = cast("Table", EngineRow.__table__)  # typed as anything to select from


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """An engine process as it was when it was last heard of; see `EngineRow`.

    `learnt` is JSON that only cost models read.
    """

    owner: str
    seen_s: float
    devices: int
    models: tuple[PipelineSpec, ...]
    learnt: bytes
    reasons: tuple[str, ...]


class EngineRegistry:
    """The table of engine processes."""

    def __init__(self, database: Database) -> None:
        """Use `database` for every call."""
        self._database = database
        self._unreadable: frozenset[str] = frozenset()

    async def announce(self, report: EngineReport) -> None:
        """Write down how an engine is; forget those that have been silent for an hour."""
        silent_s = report.seen_s - REMEMBERED_S
        await self._database.execute(
            delete(_ENGINES).where(
                or_(_ENGINES.c.seen_s < silent_s, _ENGINES.c.owner == report.owner)
            ),
            insert(_ENGINES).values(
                owner=report.owner,
                seen_s=report.seen_s,
                devices=report.devices,
                models=msgspec.json.encode(report.models).decode(),
                learnt=report.learnt.decode(),
                reasons=msgspec.json.encode(report.reasons).decode(),
            ),
            sync=False,
        )

    async def withdraw(self, owner: str) -> None:
        """Tell that an engine has stopped; what it served stays on offer for a while."""
        stopped = update(_ENGINES).where(_ENGINES.c.owner == owner)
        await self._database.execute(
            stopped.values(devices=0, reasons='["The engine was stopped."]')
        )

    async def remembered(self, *, now_s: float) -> list[EngineReport]:
        """Return all engines of the last hour, the one last heard of first.

        Those that another version wrote and this one cannot read are left out, and logged once:
        they must not hide the others.
        """
        statement = (
            select(_ENGINES)
            .where(_ENGINES.c.seen_s >= now_s - REMEMBERED_S)
            .order_by(_ENGINES.c.seen_s.desc(), _ENGINES.c.owner)
        )
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        reports, unreadable = [], set()
        for row in rows:
            try:
                reports.append(_report_of(row))
            except msgspec.MsgspecError as error:
                unreadable.add(row.owner)
                if row.owner not in self._unreadable:
                    _log.warning("engine_unreadable", engine=row.owner, reason=str(error))
        self._unreadable = frozenset(unreadable)
        return reports


def _report_of(row: Row[*tuple[Any, ...]]) -> EngineReport:
    return EngineReport(
        owner=row.owner,
        seen_s=row.seen_s,
        devices=row.devices,
        models=msgspec.json.decode(row.models, type=tuple[PipelineSpec, ...]),
        learnt=row.learnt.encode(),
        reasons=msgspec.json.decode(row.reasons, type=tuple[str, ...]),
    )
