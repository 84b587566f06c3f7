"""`trident profile`: measure stages on the devices that are here and write a profile."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import click
import structlog

from engine import EngineError, PipelineError, Shape
from engine.executors.local import LocalExecutor
from engine.fingerprint import fingerprint
from gateway.cli_options import ABOVE_0, PATH, BytesType, need_places
from gateway.machine import need_engine, need_gpus
from gateway.profiler import Notebook, Profiler
from gateway.refusal import RefusalError
from gateway.runner import open_models, reserve_bytes
from gateway.settings import default_data_dir
from schedulers.planner.demand import shape_of
from schedulers.profiles.build import render
from schedulers.profiles.checks import decode_profile
from schedulers.profiles.measured import build_profile
from schedulers.profiles.schema import Measurement

_PACKAGES: Final = ("tridentserve", "torch", "diffusers", "transformers")


class _Size(click.ParamType[Shape]):
    """`WIDTHxHEIGHT` or `WIDTHxHEIGHTxFRAMES`."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Shape:
        """Return the shape."""
        shape = value if isinstance(value, Shape) else shape_of(str(value))
        if shape is None or shape.pixels < 1:
            self.fail(f"{value!r} is not a size such as 1024x768 or 512x512x49.", param, ctx)
        return shape


@click.command()
@click.option("--model", "models", multiple=True, metavar="PATH", type=PATH, help="Repeatable.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--devices", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N")
@click.option("--device-memory", type=BytesType(), metavar="SIZE", help="Limit per device.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads per device.")
@click.option("--out", type=PATH, metavar="FILE", help="[profile.json in the data folder]")
@click.option("--minutes", type=ABOVE_0, default=10.0, show_default=True, help="About how long.")
@click.option("--size", "sizes", type=_Size(), multiple=True, help="1024x768; repeatable.")
@click.option(
    "--degree",
    "degrees",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1,),
    help="Devices that share a diffuse; repeatable [1].",
)
@click.option("--repetitions", type=click.IntRange(1, 100), default=5, show_default=True)
def profile(
    *,
    models: tuple[Path, ...],
    device: str,
    devices: int,
    device_memory: int | None,
    threads: int | None,
    out: Path | None,
    minutes: float,
    sizes: tuple[Shape, ...],
    degrees: tuple[int, ...],
    repetitions: int,
) -> None:
    """Measure what stages take here and write it as a profile.

    Each model's default size is always measured, other sizes as far as the minutes reach. An
    interrupted run goes on where it stopped. `trident serve --profile FILE` starts from it.
    """
    if out is None:
        folder = Path(os.environ.get("TRIDENT_DATA_DIR") or default_data_dir(os.environ))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        out = folder / "profile.json"
    need_places(out)
    if max(degrees) > devices:
        raise RefusalError(f"--degree {max(degrees)} needs as many --devices.")
    need_engine()
    need_gpus(device, devices)
    try:
        specs = open_models(models, device=device)
    except PipelineError as error:
        raise RefusalError(str(error)) from error
    threads = threads or max(1, (os.cpu_count() or 1) // devices)
    prints = {str(spec.id): fingerprint(Path(spec.folder)) for spec in specs}
    circumstances = {
        "machine": machine(device),
        "versions": versions(),
        "models": prints,
        "devices": devices,
        "memory": device_memory,
        "threads": threads,
        "repetitions": repetitions,
    }
    notebook = Notebook(out.with_name(out.name + ".part"), circumstances)

    async def measure(say: Callable[[str, float], None]) -> list[str]:
        executor = LocalExecutor(
            specs,
            devices=devices,
            device_kind="cuda" if device == "cuda" else "cpu",
            memory_bytes=device_memory,
            threads=threads,
        )
        profiler = Profiler(
            executor,
            notebook,
            degrees=sorted({1, *degrees}),
            repetitions=repetitions,
            minutes=minutes,
            say=say,
        )
        try:
            await profiler.measure(specs, sizes)
        finally:
            await executor.close()
        return profiler.left_out

    try:
        with _bar() as say:
            left_out = asyncio.run(measure(say))
    except (EngineError, TimeoutError) as error:
        why = str(error) or "Workers did not start."
        raise RefusalError(f"The measurement broke off. {why} Run it again to go on.") from error
    made = build_profile(
        notebook.figures,
        specs,
        device=device,
        devices=devices,
        reserve_bytes=reserve_bytes(device),
        fingerprints=prints,
        measurement=Measurement(
            machine=machine(device),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            repetitions=repetitions,
            versions=versions(),
            threads=threads,
            load_average=os.getloadavg()[0],
        ),
    )
    content = render(made)
    decode_profile(content.encode(), str(out))  # what nobody could read is not written
    out.write_text(content, encoding="utf-8")
    notebook.forget()
    for name in left_out:
        click.echo(f"left out: {name}", err=True)
    click.echo(f"written to {out}")


def machine(device: str) -> str:
    """Return what the figures are of: processor, cores and system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass
    return f"{device} on {name}, {os.cpu_count()} cores, {platform.platform()}"


def versions() -> dict[str, str]:
    """Return the versions that figures depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """Show how much of the time has gone, and what is measured; quiet where nobody looks."""
    quiet = structlog.make_filtering_bound_logger("warning")
    structlog.configure(wrapper_class=quiet)
    hidden = not sys.stderr.isatty()
    with click.progressbar(
        length=1000, file=sys.stderr, hidden=hidden, width=30, item_show_func=lambda what: what
    ) as bar:

        def say(what: str, share: float) -> None:
            bar.update(max(0, int(1000 * share) - bar.pos), what)

        yield say
        bar.update(1000 - bar.pos, "done")
