"""`trident simulate` and `trident capacity`: what a cluster would do, without the cluster.

Only options, progress and files live here; simulations are `schedulers.sim`. What is wrong with
the input is said before anything runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import structlog

from gateway.cli_options import ABOVE_0, PATH, Failure, Number, need_places, shared
from gateway.refusal import RefusalError
from schedulers.errors import SchedulerError
from schedulers.policies import TUNABLE, SwitchValue
from schedulers.profile import load_profile
from schedulers.sim.capacity import Capacity, asked_gpus, least_nodes
from schedulers.sim.compare import compare
from schedulers.sim.config import POLICIES, NodeFailure, SimConfig
from schedulers.sim.demand import Demand, TraceDemand, WorkloadDemand
from schedulers.sim.events import EventFile, SimEvent
from schedulers.sim.experiment import Simulate, run_experiment
from schedulers.sim.plot import FORMATS, need_matplotlib, plot_comparison, plot_run
from schedulers.sim.price import gpu_seconds
from schedulers.sim.recording import Latencies, Timeline
from schedulers.sim.rendering import render, table
from schedulers.sim.run import simulate as simulate_core
from schedulers.sim.summary import Summary
from schedulers.sim.traces import mix_of
from schedulers.sim.workloads import workload
from schedulers.sim.world import cluster_of

_MOST_NODES: Final = 128
MOST_GPUS: Final = 65_536


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """What every simulation of one command has in common."""

    demand: Demand
    profile: str
    models: tuple[str, ...]
    slo_scale: float
    seed: int
    noise: float
    stragglers: float
    dispatcher: str | None
    switches: Mapping[str, SwitchValue]
    degrade: bool
    min_steps_share: float | None
    failures: tuple[NodeFailure, ...] = ()

    def config(self, policy: str, gpus: int, nodes: int | None) -> SimConfig:
        tunable = policy in TUNABLE  # a comparison may hold some that are not
        return SimConfig(
            profile=self.profile,
            models=self.models,
            gpus=gpus,
            nodes=nodes,
            rows=self.demand.rows(),
            mix=mix_of(self.demand.rows()),
            policy=policy,
            slo_scale=self.slo_scale,
            seed=self.seed,
            noise=self.noise,
            stragglers=self.stragglers,
            failures=self.failures,
            dispatcher=self.dispatcher if tunable else None,
            switches=self.switches if tunable else {},
            degrade=self.degrade,
            min_steps_share=self.min_steps_share,
        )

    def summarise(
        self,
        simulate: Simulate,
        config: SimConfig,
        *observers: Callable[[SimEvent], None],
        label: str | None = None,
    ) -> Summary:
        with _progress(label or config.policy, self.demand.duration_s) as on_progress:
            return run_experiment(
                config,
                simulate,
                workload=self.demand.label,
                rate_scale=self.demand.rate_scale,
                observers=observers,
                on_progress=on_progress,
            )


@click.command()
@shared
@click.option(
    "--gpus",
    type=click.IntRange(1, MOST_GPUS),
    required=True,
    metavar="N",
    help="Size of the cluster.",
)
@click.option(
    "--nodes", type=click.IntRange(1, MOST_GPUS), metavar="M", help="[as the profile's nodes are]"
)
@click.option("--policy", type=click.Choice(POLICIES), default="trident", show_default=True)
@click.option("--compare", "compared", metavar="A,B,..", help="Several policies, as a table.")
@click.option(
    "--fail-node", "failures", type=Failure(), multiple=True, help="NODE@SECONDS, for good."
)
@click.option(
    "--fail-gpu",
    "gpu_failures",
    type=Failure(of_gpus=True),
    multiple=True,
    help="NODE:GPU@SECONDS, for good.",
)
@click.option("--events", type=PATH, metavar="OUT.jsonl", help="Everything that happens.")
@click.option("--plot", type=PATH, metavar="OUT.png", help="Timeline and latencies.")
@click.pass_obj
def simulate(
    simulator: Simulate | None,
    /,
    *,
    gpus: int,
    nodes: int | None,
    policy: str,
    compared: str | None,
    failures: tuple[NodeFailure, ...],
    gpu_failures: tuple[NodeFailure, ...],
    events: Path | None,
    plot: Path | None,
    json_path: Path | None,
    **others: Any,
) -> None:
    """Replay requests on a simulated cluster: the real scheduler, virtual time."""
    policies = _policies(compared) if compared is not None else (policy,)
    if compared is not None and events is not None:
        raise RefusalError("--events is of one policy; leave out --compare.")
    need_places(json_path, events, plot)
    with _refusals(), _quiet():
        if plot is not None:
            _need_plottable(plot)
        run = _run(gpus=gpus, failures=(*failures, *gpu_failures), **others)
        _need_nodes(run, gpus, nodes)
        _need_tunable(run, policies)
        outputs = _Outputs(json_path, events, plot)
        configs = (run.config(one, gpus, nodes) for one in policies)
        act = _simulate if compared is None else _compare
        act(run, simulator or simulate_core, configs, outputs)


class _Outputs(msgspec.Struct, frozen=True):
    """Files to write besides the text."""

    json: Path | None
    events: Path | None
    plot: Path | None


def _simulate(
    run: _Run, simulator: Simulate, configs: Iterator[SimConfig], outputs: _Outputs
) -> None:
    latencies, timeline = Latencies(), Timeline()
    observers = [latencies.add, timeline.add] if outputs.plot is not None else []
    with ExitStack() as stack:
        if outputs.events is not None:
            observers.append(stack.enter_context(EventFile(outputs.events)).write)
        summary = run.summarise(simulator, next(configs), *observers)
    click.echo(render(summary))
    _write_json(outputs.json, summary)
    if outputs.plot is not None:
        plot_run(outputs.plot, summary, timeline, latencies)


def _compare(
    run: _Run, simulator: Simulate, configs: Iterator[SimConfig], outputs: _Outputs
) -> None:
    found: list[tuple[Summary, Latencies]] = []
    for config in configs:
        latencies = Latencies()
        found.append((run.summarise(simulator, config, latencies.add), latencies))
    summaries = [summary for summary, _ in found]
    click.echo(compare(summaries))
    _write_json(outputs.json, {"simulated": True, "summaries": summaries})
    if outputs.plot is not None:
        plot_comparison(outputs.plot, found)


@click.command()
@shared
@click.option("--target", type=Number(0, 1, min_open=True), default=0.99, show_default=True)
@click.option("--rate", "rate_rps", type=ABOVE_0, help="Requests per second of a workload.")
@click.option(
    "--gpus",
    type=click.IntRange(1, MOST_GPUS),
    default=128,
    show_default=True,
    help="The cluster that a workload's own rate is for; not what is searched.",
)
@click.option("--gpus-per-node", "per_node", type=click.IntRange(1, 64), help="[as in the profile]")
@click.option(
    "--max-nodes", type=click.IntRange(1, MOST_GPUS), default=_MOST_NODES, show_default=True
)
@click.option("--policy", type=click.Choice(POLICIES), default="trident", show_default=True)
@click.pass_obj
def capacity(
    simulator: Simulate | None,
    /,
    *,
    target: float,
    rate_rps: float | None,
    gpus: int,
    per_node: int | None,
    max_nodes: int,
    policy: str,
    json_path: Path | None,
    **others: Any,
) -> None:
    """Find the least cluster whose simulation reaches a target attainment."""
    need_places(json_path)
    with _refusals(), _quiet():
        run = _run(gpus=gpus, rate_rps=rate_rps, **others)
        _need_tunable(run, (policy,))
        width = per_node or load_profile(run.profile).node.gpus
        chosen = simulator or simulate_core

        def attainment(nodes: int) -> float:
            config = run.config(policy, nodes * width, nodes)
            label = f"{policy}, {nodes} x {width} GPUs"
            return run.summarise(chosen, config, label=label).slo_attainment

        price = gpu_seconds(run.profile, run.models)
        asked = asked_gpus(run.demand.rows(), price, run.demand.duration_s)
        first = max(1, math.ceil(asked / width))
        found = least_nodes(attainment, target=target, first=first, most=max_nodes)
        click.echo(_answer(found, width, target, run, policy))
        _write_json(
            json_path, {"simulated": True, "target": target, "gpus_per_node": width, "found": found}
        )
    if found.nodes is None:
        raise RefusalError(f"{max_nodes} nodes do not reach {target:.1%}; raise --max-nodes.")


def _answer(found: Capacity, width: int, target: float, run: _Run, policy: str) -> str:
    rows = [
        (f"{trial.nodes}", f"{trial.nodes * width}", f"{trial.attainment:.2%}")
        for trial in found.trials
    ]
    head = f"SIMULATED: policy {policy}, profile {run.profile}, {', '.join(run.models)}"
    lines = [head, "", *table(("nodes", "GPUs", "on time"), rows), ""]
    if found.nodes is not None:
        lines.append(f"{found.nodes * width} GPUs ({found.nodes} nodes) reach {target:.1%}.")
    return "\n".join(lines).rstrip()


def _run(
    *,
    trace: Path | None,
    name: str | None,
    models: tuple[str, ...],
    gpus: int,
    rate_scale: float,
    steps: int | None,
    duration_s: float | None,
    seed: int,
    profile: str,
    switches: tuple[tuple[str, SwitchValue], ...],
    degrade: bool,
    min_steps_share: float | None,
    rate_rps: float | None = None,
    failures: tuple[NodeFailure, ...] = (),
    **others: Any,
) -> _Run:
    """Make the demand; everything that is wrong with it is found here."""
    models = tuple(dict.fromkeys(models))
    _need_a_source(trace, name, degrade=degrade, min_steps_share=min_steps_share)
    price = gpu_seconds(profile, models)
    demand: Demand
    if trace is not None:
        if duration_s is not None or rate_rps is not None:
            raise RefusalError("A trace has its own duration and rate; use --rate-scale.")
        demand = TraceDemand(trace, models=models, rate_scale=rate_scale, steps=steps)
    else:
        at = partial(
            WorkloadDemand,
            workload(name or ""),
            models=models,
            gpus=gpus,
            gpu_seconds=price,
            seed=seed,
            steps=steps,
            duration_s=duration_s,
        )
        demand = made = at(rate_scale=rate_scale)
        if rate_rps is not None:
            demand = at(rate_scale=rate_scale * rate_rps / made.rate_rps)
    if next(demand.rows(), None) is None:
        raise RefusalError(f"{demand.label} has no request in {demand.duration_s:g} s; take more.")
    return _Run(
        demand=demand,
        profile=profile,
        models=models,
        seed=seed,
        switches=dict(switches),
        degrade=degrade,
        min_steps_share=min_steps_share,
        failures=failures,
        **others,
    )


def _need_a_source(
    trace: Path | None, name: str | None, *, degrade: bool, min_steps_share: float | None
) -> None:
    if (trace is None) == (name is None):
        raise RefusalError("Say what to simulate: either --trace FILE or --workload NAME.")
    if min_steps_share is not None and not degrade:
        raise RefusalError("--min-steps-share is for --degrade; give both or none.")
    if degrade and trace is None and min_steps_share is None:
        raise RefusalError("Requests of a workload allow no fewer steps; add --min-steps-share.")


def _policies(compared: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in compared.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        wrong = f"no policy is named {unknown[0]!r}" if unknown else "no policy is named"
        raise RefusalError(f"--compare: {wrong}; there are {', '.join(POLICIES)}.")
    return names


def _need_nodes(run: _Run, gpus: int, nodes: int | None) -> None:
    infos = cluster_of(load_profile(run.profile), gpus, nodes)
    count = len({info.node for info in infos})
    for failure in run.failures:
        if not failure.doomed(infos):
            what = (
                f"node {failure.node}"
                if failure.gpu is None
                else f"GPU {failure.node}:{failure.gpu}"
            )
            message = f"There is no {what} to fail; nodes are 0 to {count - 1}"
            width = -(-gpus // count)
            raise RefusalError(f"{message}, the GPUs of each 0 to {width - 1} at most.")


def _need_tunable(run: _Run, policies: tuple[str, ...]) -> None:
    """Refuse switches and solvers that no policy would look at."""
    if (run.switches or run.dispatcher is not None) and TUNABLE.isdisjoint(policies):
        message = f"{', '.join(policies)} has no switches and one solver; leave out --switch and"
        raise RefusalError(f"{message} --solver, which are for {', '.join(sorted(TUNABLE))}.")


def _need_plottable(plot: Path) -> None:
    if plot.suffix.lower() not in FORMATS:
        raise RefusalError(f"Cannot draw {plot}; the name must end in {', '.join(FORMATS)}.")
    need_matplotlib()


def _write_json(path: Path | None, content: object) -> None:
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the user can mend into one sentence."""
    try:
        yield
    except SchedulerError as error:
        raise RefusalError(str(error)) from error
    except OSError as error:
        raise RefusalError(f"Cannot write {error.filename}: {error.strerror}.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the engine's log: its devices come and go in virtual time."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def _progress(label: str, duration_s: float) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal; what is shown is how far requests have arrived."""
    hidden = not sys.stderr.isatty()
    length = max(1, math.ceil(duration_s))
    with click.progressbar(
        length=length, label=label, file=sys.stderr, hidden=hidden, width=30
    ) as bar:

        def on_progress(now_s: float) -> None:
            bar.update(min(length, int(now_s)) - bar.pos)

        yield on_progress
        bar.update(length - bar.pos)
