"""Nodes of a server: other machines that lend it devices, and what both sides must have in common."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from engine.executors.local import LocalExecutor
from engine.executors.node_line import NodeAwayError, inspect
from engine.executors.remote import RemoteExecutor
from engine.executors.spanning import SpanningExecutor
from engine.fingerprint import identity
from engine.node_wire import Hello, Inspect, Terms
from gateway.circumstances import versions
from gateway.refusal import RefusalError

if TYPE_CHECKING:
    from engine import PipelineSpec
    from engine.messages import Saving
    from engine.ports import Executor
    from gateway.settings import Settings

_DECISIVE: Final = ("tridentserve", "torch", "diffusers", "transformers")
_log = structlog.get_logger(__name__)


def terms_of(settings: Settings, specs: Sequence[PipelineSpec]) -> Terms:
    """Return what this machine has of what server and nodes must have in common."""
    installed = versions()
    return Terms(
        device_kind=settings.device,
        models={spec.id: identity(Path(spec.folder)) for spec in specs},
        versions={name: installed[name] for name in _DECISIVE if name in installed},
    )


def local_executor(
    settings: Settings,
    specs: Sequence[PipelineSpec],
    *,
    saving: Saving | None,
    widest_team: int,
    node: str = "local",
    handoff_token: str | None = None,
) -> LocalExecutor:
    """Return the executor of this machine's devices."""
    return LocalExecutor(
        specs,
        devices=settings.devices,
        node=node,
        device_kind=settings.device,
        memory_bytes=settings.device_memory_bytes,
        host_bytes=settings.host_memory_bytes,
        handoff_bytes=settings.handoff_memory_bytes,
        threads=settings.threads_per_device,
        saving=saving,
        widest_team=widest_team,
        handoff_token=handoff_token,
    )


def executor_of(
    settings: Settings,
    specs: Sequence[PipelineSpec],
    *,
    saving: Saving | None,
    widest_team: int,
) -> Executor:
    """Return the executor of this machine's devices and of those of all nodes."""
    token = secrets.token_hex() if settings.nodes else None
    home = local_executor(
        settings, specs, saving=saving, widest_team=widest_team, handoff_token=token
    )
    if token is None:
        return home
    terms = terms_of(settings, specs)
    hellos = (Hello(terms, str(node), token, saving, widest_team) for node in settings.nodes)
    nodes = [RemoteExecutor(hello, settings.node_secret, home) for hello in hellos]
    return SpanningExecutor(home, nodes)


def need_nodes(settings: Settings, specs: Sequence[PipelineSpec]) -> None:
    """Refuse nodes that cannot serve this server; one that is not reached may come later.

    Raises:
        RefusalError: a node has other models, versions or another secret.
    """
    if settings.nodes and settings.role != "gateway":
        asyncio.run(_need_nodes(settings, Inspect(terms_of(settings, specs))))


async def _need_nodes(settings: Settings, question: Inspect) -> None:
    asked = (inspect(str(node), settings.node_secret, question) for node in settings.nodes)
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(outcome, NodeAwayError) and not outcome.for_good:
            _log.warning("node_away", reason=str(outcome))
        elif isinstance(outcome, NodeAwayError):
            raise RefusalError(str(outcome)) from outcome
        elif outcome is not None:
            raise outcome
