"""`trident node`: lend this machine's devices to a server on another one."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import click

from engine import PipelineError
from engine.executors.agent import Agent
from gateway.bundled import open_served
from gateway.node_settings import DEFAULT_LISTEN, NodeSettings
from gateway.nodes import local_executor, terms_of
from gateway.refusal import RefusalError
from gateway.settings import Settings
from observability.logging import configure_logging

if TYPE_CHECKING:
    from engine import PipelineSpec
    from engine.executors.local import LocalExecutor
    from engine.node_wire import Hello


@click.command()
@click.option("--listen", metavar="HOST:PORT", help=f"Where servers connect [{DEFAULT_LISTEN}].")
@click.option("--handoff-port", metavar="N", help="Where tensors are fetched [PORT + 1].")
@click.option("--model", "models", multiple=True, metavar="PATH", help="Model folder; repeatable.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What stages run on [cpu].")
@click.option("--devices", metavar="N", help="Worker processes, one per device [3 on cpu].")
@click.option("--device-memory", metavar="SIZE", help="Limit per device, such as 512MiB or 24GiB.")
@click.option("--threads", metavar="N", help="CPU threads per device.")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="[auto]")
def node(models: tuple[str, ...], threads: str | None, **flags: str | None) -> None:
    """Lend this machine's devices to a server: `trident serve --node HOST:PORT`.

    It needs copies of the server's model folders. On any address but the loopback one both sides
    need the same TRIDENT_NODE_TOKEN (docs/nodes.md).
    """
    wanted = {f"TRIDENT_{name.upper()}": value for name, value in flags.items()}
    wanted["TRIDENT_THREADS_PER_DEVICE"] = threads
    wanted["TRIDENT_MODEL"] = os.pathsep.join(models) or os.environ.get("TRIDENT_MODEL")
    os.environ.update({name: value for name, value in wanted.items() if value})
    os.environ["TRIDENT_NODES"] = ""  # a node has none of its own
    try:
        settings, place = Settings.from_env(), NodeSettings.from_env()
        specs = open_served(settings)
    except (ValueError, PipelineError) as error:
        raise RefusalError(str(error)) from error
    configure_logging(settings.log_format)
    asyncio.run(_serve(settings, place, specs))


async def _serve(settings: Settings, place: NodeSettings, specs: tuple[PipelineSpec, ...]) -> None:
    def make(hello: Hello) -> LocalExecutor:
        served = [spec for spec in specs if spec.id in hello.terms.models]
        return local_executor(
            settings,
            served,
            saving=hello.saving,
            widest_team=hello.widest_team,
            node=hello.name,
            handoff_token=hello.handoff_token,
        )

    agent = Agent(terms_of(settings, specs), make, settings.node_secret)
    try:
        agent.listen(place.listen.host, place.listen.port, place.handoff_port)
    except OSError as error:
        message = f"Cannot listen on {place.listen}: {error.strerror}. Choose another --listen."
        raise RefusalError(message) from error
    names = ", ".join(spec.id for spec in specs)
    click.echo(
        f"TridentServe node: {settings.devices} x {settings.device} (models: {names}), waiting for a "
        f"server at {place.listen}: trident serve --node {place.listen}",
        err=True,
    )
    serving = asyncio.ensure_future(agent.serve())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    await asyncio.gather(serving, return_exceptions=True)
    await agent.close()
    if not serving.cancelled() and (broke := serving.exception()) is not None:
        raise broke
