"""Pictures of simulations: what devices did over time, and how long requests took.

matplotlib is an extra and imported here only, when a picture is asked for. Rectangles of a kind
are one collection, so that 128 devices over half an hour take seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from schedulers.errors import SchedulerError
from schedulers.sim.recording import FAILED, LOAD, LOST, Bars, Latencies, Timeline
from schedulers.sim.summary import Summary

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg", ".pdf")
_HINT: Final = f"{sys.executable} -m pip install 'tridentserve[sim]'"
_DPI: Final = 150
_NAMED_ROWS: Final = 16  # with more devices only nodes are named
_OUTLINED: Final = 4000  # with more rectangles outlines would hide them
_GAP: Final = 0.14  # between the bars of named devices


class _Look(msgspec.Struct, frozen=True):
    color: str
    hatch: str | None = None
    edge: str = "white"


# Colours that are told apart by the colour-blind (Okabe and Ito).
_LOOKS: Final = {
    "encode": _Look("#E69F00"),
    "diffuse": _Look("#56B4E9"),
    "decode": _Look("#009E73"),
    LOAD: _Look("#F6F3EA", hatch="//////", edge="#6b4e16"),
    FAILED: _Look("#CC3311"),
    LOST: _Look("#4d4d4d"),
}
_SWITCH: Final = "#AA3377"
_LINES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def need_matplotlib() -> None:
    """Raise if pictures cannot be drawn here.

    Raises:
        SchedulerError: says what to install.
    """
    if find_spec("matplotlib") is None:
        raise SchedulerError(f"Plots need matplotlib, which is not installed; run: {_HINT}")


def plot_run(path: Path, summary: Summary, timeline: Timeline, latencies: Latencies) -> None:
    """Draw one simulation: timeline above, latencies below."""
    timeline.close()
    rows = len(timeline.devices)
    figure = _figure(15, min(11.0, 6.2 + 0.055 * rows))
    grid = figure.add_gridspec(2, 2, height_ratios=[max(1.0, min(2.0, rows / 40)), 1])
    _draw_timeline(figure.add_subplot(grid[0, :]), timeline)
    _draw_distribution(figure.add_subplot(grid[1, 0]), [(summary.policy, latencies)])
    _draw_over_time(figure.add_subplot(grid[1, 1]), latencies)
    figure.suptitle(f"Simulated: {summary.policy}, {_where(summary)}\n{_reached(summary)}")
    figure.savefig(path, dpi=_DPI)


def plot_comparison(path: Path, runs: Sequence[tuple[Summary, Latencies]]) -> None:
    """Draw the latency curves of several simulations of one workload."""
    figure = _figure(15, 6.5)
    left, right = figure.subplots(1, 2, sharey=True)
    named = [(summary.policy, latencies) for summary, latencies in runs]
    _draw_distribution(left, named)
    _draw_against_deadline(right, named)
    figure.suptitle(f"Simulated: {len(runs)} policies, {_where(runs[0][0])}")
    figure.savefig(path, dpi=_DPI)


def _figure(width: float, height: float) -> Figure:
    need_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    return Figure(figsize=(width, height), layout="constrained")


def _where(summary: Summary) -> str:
    return (
        f"{summary.gpus} GPUs on {summary.nodes} nodes, profile {summary.profile}, "
        f"{', '.join(summary.models)}, workload {summary.workload} x {summary.rate_scale:g}, "
        f"seed {summary.seed}"
    )


def _reached(summary: Summary) -> str:
    mean, p95 = summary.mean_s or 0.0, summary.p95_s or 0.0
    return (
        f"{summary.slo_attainment:.1%} of {summary.requests} requests on time, mean {mean:.3g} s, "
        f"P95 {p95:.3g} s, GPUs {summary.gpu_utilisation['total']:.0%} busy"
    )


def _draw_timeline(axes: Axes, timeline: Timeline) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an extra
    from matplotlib.patches import Patch  # noqa: PLC0415 - an extra

    handles: list[Line2D | Patch] = []
    for kind, look in _LOOKS.items():
        if (bars := timeline.bars.get(kind)) is not None:
            _draw_bars(axes, bars, look, 1.0 - _GAP * (len(timeline.devices) <= _NAMED_ROWS))
            outline = look.edge if look.hatch else look.color
            handles.append(Patch(fc=look.color, ec=outline, hatch=look.hatch, label=kind))
    if timeline.switches:
        low, high = -0.5, len(timeline.devices) - 0.5
        axes.vlines(timeline.switches, low, high, color=_SWITCH, linewidth=1.4, linestyle="--")
        handles.append(Line2D([], [], color=_SWITCH, linestyle="--", label="switch of placement"))
    _name_rows(axes, timeline)
    axes.set_xlim(0, timeline.end_s or 1)
    axes.set_xlabel("virtual time, s")
    axes.set_title("What every GPU does", loc="left", fontsize="medium")
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=7, frameon=False)


def _draw_bars(axes: Axes, bars: Bars, look: _Look, height: float) -> None:
    from matplotlib.collections import PolyCollection  # noqa: PLC0415 - an extra

    outlined = look.hatch is not None or len(bars.rows) <= _OUTLINED
    boxes = PolyCollection(
        list(_corners(bars, height)),
        facecolors=look.color,
        edgecolors=look.edge if outlined else "none",
        linewidths=0.3 if outlined else 0.0,
        hatch=look.hatch,
        zorder=2,
    )
    axes.add_collection(boxes, autolim=False)


def _corners(bars: Bars, height: float) -> np.ndarray:
    import numpy as np  # noqa: PLC0415 - comes with matplotlib

    low = np.asarray(bars.rows) - height / 2
    high, start, end = low + height, np.asarray(bars.starts), np.asarray(bars.ends)
    corners = [(start, low), (start, high), (end, high), (end, low)]
    return np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)  # (bars, 4, 2)


def _name_rows(axes: Axes, timeline: Timeline) -> None:
    """Name devices if they are few, nodes otherwise; the first row is on top."""
    devices = timeline.devices
    axes.set_ylim(max(1, len(devices)) - 0.5, -0.5)
    first = 0
    middles, names = [], []
    for node, group in groupby(devices, key=lambda device: device.node):
        count = len(list(group))
        middles.append(first + (count - 1) / 2)
        names.append(node)
        first += count
        axes.axhline(first - 0.5, color="#999999", linewidth=0.5, zorder=1)
    if len(devices) <= _NAMED_ROWS:
        middles, names = list(range(len(devices))), [device.id for device in devices]
    every = max(1, -(-len(names) // 32))
    axes.set_yticks(middles[::every], names[::every])
    axes.tick_params(axis="y", length=0)


def _draw_distribution(axes: Axes, runs: Sequence[tuple[str, Latencies]]) -> None:
    for color, (name, latencies) in zip(_colors(runs), runs, strict=True):
        _draw_share(axes, list(latencies.latencies), name, color)
    _scale(axes, "x")
    axes.set_xlabel("latency, s")
    _finish_shares(axes, "Share of all requests that took at most so long", runs)


def _draw_against_deadline(axes: Axes, runs: Sequence[tuple[str, Latencies]]) -> None:
    for color, (name, found) in zip(_colors(runs), runs, strict=True):
        pairs = zip(found.latencies, found.allowed, strict=True)
        _draw_share(axes, [latency / max(allowed, 1e-9) for latency, allowed in pairs], name, color)
    axes.axvline(1, color="#444444", linewidth=1, linestyle=":")
    _scale(axes, "x")
    axes.set_xlabel("latency over the time allowed (left of 1: on time)")
    _finish_shares(axes, "Share of all requests, against their deadlines", runs)


def _draw_share(axes: Axes, values: list[float], name: str, color: str) -> None:
    """Draw a distribution; what never ended counts and is not drawn."""
    ordered = sorted(values)
    shown = [value for value in ordered if value != float("inf")]
    heights = [(i + 1) / len(ordered) for i in range(len(shown))]
    axes.step(shown, heights, where="post", label=name, color=color, linewidth=1.6)


def _finish_shares(axes: Axes, title: str, runs: Sequence[tuple[str, Latencies]]) -> None:
    axes.set_ylim(0, 1.02)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(color="#dddddd", linewidth=0.6)
    if len(runs) > 1:
        axes.legend(loc="upper left")


def _draw_over_time(axes: Axes, found: Latencies) -> None:
    rows = list(zip(found.arrivals, found.latencies, found.allowed, strict=True))
    on_time = [(at, latency) for at, latency, allowed in rows if latency <= allowed]
    late = [(at, latency) for at, latency, allowed in rows if allowed < latency < float("inf")]
    never = [at for at, latency, _ in rows if latency == float("inf")]
    for points, label, color in ((on_time, "on time", "#0072B2"), (late, "late", "#D55E00")):
        if points:
            ats, latencies = zip(*points, strict=True)
            axes.scatter(ats, latencies, s=6, color=color, label=label, linewidths=0)
    if never:
        top = axes.get_xaxis_transform()
        axes.plot(never, [0.97] * len(never), "k|", transform=top, label="no output")
    _scale(axes, "y")
    axes.set_xlabel("arrival, virtual s")
    axes.set_ylabel("latency, s")
    axes.set_title("Latency of every request", loc="left", fontsize="medium")
    axes.grid(color="#dddddd", linewidth=0.6)
    if rows:
        above = (1, 1)
        axes.legend(loc="lower right", bbox_to_anchor=above, ncols=3, frameon=False, markerscale=2)


def _colors(runs: Sequence[object]) -> list[str]:
    return [_LINES[i % len(_LINES)] for i in range(len(runs))]


def _scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
