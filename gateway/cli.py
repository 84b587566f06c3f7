"""The `trident` command: serve models, simulate clusters, make a model folder to try things with.

Flags of `serve` become `TRIDENT_*` variables, because the server process that granian starts
builds its own settings from them. Everything that can be wrong is found out before that.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server.mp import MPServer

from engine import Modality, PipelineError
from gateway.auth.hosts import is_loopback
from gateway.auth.keys import OPEN_MODE
from gateway.bundled import open_served
from gateway.cli_bench import bench
from gateway.cli_database import migrate, need_database
from gateway.cli_keys import keys
from gateway.cli_node import node
from gateway.cli_options import need_places
from gateway.cli_profile import profile
from gateway.cli_simulate import capacity, simulate
from gateway.machine import need_engine
from gateway.nodes import need_nodes
from gateway.refusal import RefusalError
from gateway.runner import need_policy, open_profile
from gateway.settings import SOLVERS, Settings, SettingsError
from gateway.stopping import PARENT_VARIABLE, ignore_further_signals
from gateway.storage.blobs import BlobStore
from gateway.switches import SEPARATOR
from observability.logging import configure_logging, granian_log_config
from schedulers.errors import SchedulerError
from schedulers.policies import LIVE_POLICIES

if TYPE_CHECKING:
    from engine import PipelineSpec

_STOP_WITHIN_S: Final = 15  # after the drain: saving, closing the workers


@click.group()
@click.version_option(package_name="tridentserve")
def main() -> None:
    """Serve diffusion models behind an OpenAI-compatible API."""


main.add_command(simulate)
main.add_command(profile)
main.add_command(bench)
main.add_command(capacity)
main.add_command(migrate)
main.add_command(keys)
main.add_command(node)


@main.command()
@click.option("--model", "models", multiple=True, metavar="PATH", help="Model folder; repeatable.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What stages run on [cpu].")
@click.option("--devices", metavar="N", help="Worker processes, one per device [3 on cpu].")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="HOST:PORT",
    help="Where `trident node` lends the devices of another machine; repeatable.",
)
@click.option("--device-memory", metavar="SIZE", help="Limit per device, such as 512MiB or 24GiB.")
@click.option("--threads", metavar="N", help="CPU threads per device.")
@click.option("--host", help="Address to listen on [127.0.0.1].")
@click.option("--port", metavar="N", help="Port to listen on [8000].")
@click.option("--data-dir", metavar="PATH", help="Where jobs and pictures are kept.")
@click.option(
    "--role",
    type=click.Choice(["both", "gateway", "engine"]),
    help="Answer calls, run jobs, or both [both].",
)
@click.option("--database", metavar="URL", help="postgresql://... [a file in the data folder].")
@click.option("--trace-file", metavar="PATH", help="Append spans to this file, one JSON a line.")
@click.option("--policy", type=click.Choice(LIVE_POLICIES), help="What decides [trident].")
@click.option(
    "--solver", type=click.Choice(SOLVERS), help="How `trident` starts diffuses [greedy]."
)
@click.option(
    "--switch",
    "switches",
    multiple=True,
    metavar="NAME=on|off|NUMBER",
    help="An addition of `trident`; repeatable (docs/dispatcher.md lists them).",
)
@click.option("--step-batch", metavar="N", help="Most requests that share denoise steps [1].")
@click.option("--profile", metavar="FILE", help="What stages take, as `trident profile` wrote it.")
@click.option("--events", metavar="FILE", help="Write everything that happens, one JSON a line.")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="[auto]")
def serve(
    models: tuple[str, ...],
    nodes: tuple[str, ...],
    threads: str | None,
    switches: tuple[str, ...],
    **flags: str | None,
) -> None:
    """Serve models until interrupted.

    Every flag has a TRIDENT_ variable: --data-dir is TRIDENT_DATA_DIR. TRIDENT_API_KEYS holds
    keys; without keys the server listens on this machine only.
    """
    wanted = {f"TRIDENT_{name.upper()}": value for name, value in flags.items()}
    wanted["TRIDENT_THREADS_PER_DEVICE"] = threads
    wanted["TRIDENT_NODES"] = ",".join(nodes)
    wanted["TRIDENT_SWITCHES"] = SEPARATOR.join(switches)
    wanted["TRIDENT_MODEL"] = os.pathsep.join(models) or os.environ.get("TRIDENT_MODEL")
    os.environ.update({name: value for name, value in wanted.items() if value})
    try:
        settings = Settings.from_env()
        _need_data_dir(settings.data_dir)
        BlobStore.at(settings.artifacts_place)
        has_keys = need_database(settings.database_url) or bool(settings.keys)
        _need_keys(settings, has_keys=has_keys)
        specs = open_served(settings)
        profile = open_profile(settings, specs)
        need_policy(settings, specs, profile)
    except (SettingsError, PipelineError, SchedulerError) as error:
        raise RefusalError(str(error)) from error
    except ValueError as error:
        message = f"TRIDENT_ARTIFACTS: {error}"
        raise RefusalError(message) from error
    _need_trace_file(settings.trace_file)
    need_places(settings.events_file)
    _need_port(settings.host, settings.port)
    configure_logging(settings.log_format)
    need_nodes(settings, specs)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    _serve(settings, specs, has_keys=has_keys)


class _Server(MPServer):
    """A server that takes the first stop signal and no other.

    A second one while granian 2.8 handles the first deadlocks it on a lock of its own.
    """

    def signal_handler_interrupt(self, *args: object, **kwargs: object) -> None:
        """Begin to stop."""
        ignore_further_signals()
        super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]


def _serve(settings: Settings, specs: tuple[PipelineSpec, ...], *, has_keys: bool) -> None:
    server = _Server(
        "gateway.app:create_app_from_env",
        factory=True,
        interface=Interfaces.ASGI,
        address=settings.host,
        port=settings.port,
        loop=Loops.asyncio,  # uvloop, if it were installed, hides what `on_stop_signal` must call
        workers=1,  # the engine is embedded: a second worker would start a second engine
        websockets=False,
        log_level=LogLevels.warning,
        log_dictconfig=granian_log_config(),
        workers_kill_timeout=math.ceil(settings.drain_s) + _STOP_WITHIN_S,
    )

    @server.on_startup
    def greet() -> None:
        click.echo(greeting(settings, specs, has_keys=has_keys), err=True)

    try:
        server.serve()
    except SystemExit:
        if not server.interrupt_signal:  # a child that heard the signal first is no failure
            raise


def greeting(settings: Settings, specs: Sequence[PipelineSpec], *, has_keys: bool = False) -> str:
    """Return what a newcomer needs once the server listens."""
    text = _greeting(settings, specs, has_keys=has_keys)
    if has_keys or settings.role == "engine":
        return text
    return f"{text}\nOPEN: {OPEN_MODE}"


def _greeting(settings: Settings, specs: Sequence[PipelineSpec], *, has_keys: bool) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    names = ", ".join(spec.id for spec in specs)
    if settings.role == "gateway":
        return f"TridentServe gateway listens on {url}; its engines run as processes of their own."
    if settings.role == "engine":
        return f"TridentServe engine runs jobs (models: {names}); its health is at {url}/readyz."
    return (
        f"TridentServe listens on {url} (models: {names}; {_devices(settings)}). "
        f"Try:\n{_example(url, specs, has_keys=has_keys)}"
    )


def _devices(settings: Settings) -> str:
    here = f"{settings.devices} x {settings.device}"
    nodes = ", ".join(map(str, settings.nodes))
    return f"{here}, and what {nodes} lends" if nodes else here


def _example(url: str, specs: Sequence[PipelineSpec], *, has_keys: bool) -> str:
    key = "-H 'Authorization: Bearer YOUR_KEY' " if has_keys else ""
    images = [spec.id for spec in specs if spec.modality is Modality.IMAGE]
    if not images:
        body = f'{{"model": "{specs[0].id}", "prompt": "a red circle moving right"}}'
        return f"  curl -s {url}/v1/videos {key}-H 'Content-Type: application/json' -d '{body}'"
    body = f'{{"model": "{images[0]}", "prompt": "a red circle on a blue background"}}'
    return (
        f"  curl -s {url}/v1/images/generations {key}-H 'Content-Type: application/json' \\\n"
        f"    -d '{body}' \\\n"
        "    | python3 -c 'import sys,json,base64; sys.stdout.buffer.write("
        'base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\' > picture.png'
    )


def _need_keys(settings: Settings, *, has_keys: bool) -> None:
    """Refuse to serve strangers without keys."""
    if not has_keys and settings.role != "engine" and not is_loopback(settings.host):
        message = (
            f"Without API keys the server only listens on this machine, but TRIDENT_HOST is "
            f"{settings.host}. Make a key with: trident keys create --tenant NAME (or set "
            f"TRIDENT_API_KEYS=tenant:key or TRIDENT_API_KEYS_FILE), or use --host 127.0.0.1."
        )
        raise RefusalError(message)


def _need_data_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        message = (
            f"Cannot use {folder} as data folder: {error.strerror}. Choose another --data-dir."
        )
        raise RefusalError(message) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        message = f"The data folder {folder} cannot be written. Choose another --data-dir."
        raise RefusalError(message)


def _need_trace_file(path: Path | None) -> None:
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"Cannot write {path}: {error.strerror}. Choose another --trace-file."
            raise RefusalError(message) from error
        need_places(path)


def _need_port(host: str, port: int) -> None:
    """Find out in words what granian would answer with a traceback."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        message = (
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another --port, or "
            "stop the program that uses this one."
        )
        raise RefusalError(message) from error


@main.group()
def model() -> None:
    """Work with model folders."""


@model.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--family", type=click.Choice(["flux", "sd3", "sd", "animatediff"]), default="flux")
@click.option("--seed", type=int, default=0, show_default=True)
def new(path: Path, family: str, seed: int) -> None:
    """Make a small model with random weights at PATH: real architecture, no skill."""
    need_engine()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        message = f"{path} exists and is not an empty folder; name a new one."
        raise RefusalError(message)
    command = [sys.executable, "-P", "-m", "engine.stages.random_model", str(path)]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [*command, "--family", family, "--seed", str(seed)],
        env={**os.environ, **quiet},
        check=False,
    )
    if done.returncode:
        message = f"Model {path} was not made; the reason stands above."
        raise RefusalError(message)
    click.echo(f"Made {path}. Serve it with: trident serve --model {path}")
