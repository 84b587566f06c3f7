"""Which engine processes there are: each tells the table of itself, gateways read it.

So a gateway needs no model folders: it offers what engines serve. Whether an engine lives is seen
by when it was last heard of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import delete, select

from engine import PipelineSpec
from gateway.db.models import EngineRow

if TYPE_CHECKING:
    from gateway.db.session import Database

# A model stays on offer for so long after its last engine died: its jobs wait for the next one.
REMEMBERED_S: Final = 3600.0


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

    async def announce(self, report: EngineReport) -> None:
        """Write down how an engine is; forget those that have been silent for an hour."""
        row = EngineRow(
            owner=report.owner,
            seen_s=report.seen_s,
            devices=report.devices,
            models=msgspec.json.encode(report.models).decode(),
            learnt=report.learnt.decode(),
            reasons=msgspec.json.encode(report.reasons).decode(),
        )
        silent = delete(EngineRow).where(EngineRow.seen_s < report.seen_s - REMEMBERED_S)
        async with self._database.writing() as session:
            await session.execute(silent)
            await session.merge(row)

    async def withdraw(self, owner: str) -> None:
        """Tell that an engine has stopped; what it served stays on offer for a while."""
        async with self._database.writing() as session:
            row = await session.get(EngineRow, owner)
            if row is not None:
                row.devices, row.reasons = 0, '["The engine was stopped."]'

    async def remembered(self, *, now_s: float) -> list[EngineReport]:
        """Return all engines of the last hour, the one last heard of first."""
        statement = (
            select(EngineRow)
            .where(EngineRow.seen_s >= now_s - REMEMBERED_S)
            .order_by(EngineRow.seen_s.desc(), EngineRow.owner)
        )
        async with self._database.reading() as session:
            return [_report_of(row) for row in await session.scalars(statement)]


def _report_of(row: EngineRow) -> EngineReport:
    return EngineReport(
        owner=row.owner,
        seen_s=row.seen_s,
        devices=row.devices,
        models=msgspec.json.decode(row.models, type=tuple[PipelineSpec, ...]),
        learnt=row.learnt.encode(),
        reasons=msgspec.json.decode(row.reasons, type=tuple[str, ...]),
    )
