"""`trident profile`: measure stages on the devices that are here and write a profile."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec
import structlog

from engine import EngineError, PipelineError, Shape
from engine.executors.local import LocalExecutor
from gateway.circumstances import fingerprints, machine, versions
from gateway.cli_options import ABOVE_0, PATH, BytesType, need_places
from gateway.machine import need_engine, need_gpus
from gateway.notebook import Notebook
from gateway.profiler import Profiler
from gateway.refusal import RefusalError
from gateway.runner import open_models, reserve_bytes
from gateway.settings import default_data_dir
from schedulers.planner.demand import shape_of
from schedulers.profiles.build import render
from schedulers.profiles.checks import decode_profile
from schedulers.profiles.measured import build_profile
from schedulers.profiles.schema import Measurement

if TYPE_CHECKING:
    from engine import PipelineSpec


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
    help="Devices that share a diffuse or a decode; repeatable [1].",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1, 2, 4),
    help="Requests that share a launch; repeatable [1 2 4].",
)
@click.option("--repetitions", type=click.IntRange(1, 100), default=5, show_default=True)
def profile(out: Path | None, **wish: object) -> None:
    """Measure what stages take here and write it as a profile.

    Each model's default size is always measured, other sizes and batches as far as the minutes
    reach. An interrupted run goes on where it stopped. `trident serve --profile FILE` starts from it.
    """
    wanted, out = _Wish(**wish), out or _default_place()  # type: ignore[arg-type] # click's types
    need_places(out)
    specs = wanted.open()
    notebook = Notebook(out.with_name(out.name + ".part"), wanted.circumstances(specs))
    try:
        with _bar() as say:
            left_out = asyncio.run(_measured(wanted, specs, notebook, say))
    except (EngineError, TimeoutError) as error:
        why = str(error) or "Workers did not start."
        raise RefusalError(f"The measurement broke off. {why} Run it again to go on.") from error
    _write(wanted, specs, notebook, out)
    for name in left_out:
        click.echo(f"left out: {name}", err=True)
    click.echo(f"written to {out}")


class _Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, and on what."""

    models: tuple[Path, ...]
    device: Literal["cpu", "cuda"]
    devices: int
    device_memory: int | None
    threads: int | None
    minutes: float
    sizes: tuple[Shape, ...]
    degrees: tuple[int, ...]
    batches: tuple[int, ...]
    repetitions: int

    def open(self) -> tuple[PipelineSpec, ...]:
        """Read the model folders, and see that this machine can run them."""
        if max(self.degrees) > self.devices:
            raise RefusalError(f"--degree {max(self.degrees)} needs as many --devices.")
        need_engine()
        need_gpus(self.device, self.devices)
        try:
            return open_models(self.models, device=self.device)
        except PipelineError as error:
            raise RefusalError(str(error)) from error

    @property
    def threads_each(self) -> int:
        """CPU threads of a device."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.devices)

    def circumstances(self, specs: Sequence[PipelineSpec]) -> dict[str, object]:
        """Return what figures depend on: those of other circumstances are not gone on from."""
        return {
            "machine": machine(self.device),
            "versions": versions(),
            "models": fingerprints(specs),
            "devices": self.devices,
            "memory": self.device_memory,
            "threads": self.threads_each,
            "repetitions": self.repetitions,
        }


def _default_place() -> Path:
    folder = Path(os.environ.get("TRIDENT_DATA_DIR") or default_data_dir(os.environ))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / "profile.json"


async def _measured(
    wanted: _Wish,
    specs: Sequence[PipelineSpec],
    notebook: Notebook,
    say: Callable[[str, float], None],
) -> list[str]:
    """Fill the notebook; return what was left out."""
    executor = LocalExecutor(
        specs,
        devices=wanted.devices,
        device_kind=wanted.device,
        memory_bytes=wanted.device_memory,
        threads=wanted.threads_each,
    )
    profiler = Profiler(
        executor,
        notebook,
        degrees=sorted({1, *wanted.degrees}),
        batches=sorted({1, *wanted.batches}),
        repetitions=wanted.repetitions,
        minutes=wanted.minutes,
        say=say,
    )
    try:
        await profiler.measure(specs, wanted.sizes)
    finally:
        await executor.close()
    return profiler.left_out


def _write(wanted: _Wish, specs: Sequence[PipelineSpec], notebook: Notebook, out: Path) -> None:
    """Write the profile and forget the notebook; what nobody could read is not written."""
    made = build_profile(
        notebook.figures,
        specs,
        device=wanted.device,
        devices=wanted.devices,
        reserve_bytes=reserve_bytes(wanted.device),
        fingerprints=fingerprints(specs),
        measurement=Measurement(
            machine=machine(wanted.device),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            repetitions=wanted.repetitions,
            versions=versions(),
            threads=wanted.threads_each,
            load_average=os.getloadavg()[0],
        ),
    )
    content = render(made)
    decode_profile(content.encode(), str(out))
    out.write_text(content, encoding="utf-8")
    notebook.forget()


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
