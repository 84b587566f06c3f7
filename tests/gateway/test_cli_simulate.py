"""`trident simulate` and `trident capacity`: figures, files, and one sentence for bad input."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.types import DeviceId, ModelId, RequestId, StageKind
from gateway.cli import main
from schedulers.errors import SchedulerError
from schedulers.sim.audit import audit
from schedulers.sim.config import NodeFailure, RunFacts, SimConfig
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    FinishEvent,
    RejectEvent,
    ResidentStage,
    RunEvent,
    SimEvent,
    read_events,
)

SIMULATE = ("simulate", "--model", "sd3", "--gpus", "8")
HETU = (*SIMULATE, "--workload", "hetu")
TRACE = "arrival_s,height,width,frames,steps\n0,512,512,1,20\n1,9999,9999,1,20\n2,512,512,1,20\n"


class Instant:
    """A simulator on which every request takes `latency_s` on a device of its own."""

    def __init__(self, latency_s: float = 2.0) -> None:
        self.latency_s = latency_s
        self.configs: list[SimConfig] = []

    def __call__(
        self,
        config: SimConfig,
        *,
        on_event: Callable[[SimEvent], None],
        on_progress: Callable[[float], None],
    ) -> RunFacts:
        self.configs.append(config)
        rows = list(config.rows)
        stages = tuple(ResidentStage(ModelId("sd3"), kind, 1) for kind in StageKind)
        devices = (ClusterDevice(DeviceId(f"g{i}"), "n0", 10, stages) for i in range(len(rows)))
        on_event(ClusterEvent(tuple(devices)))
        for i, row in enumerate(rows):
            on_progress(row.arrival_s)
            name = RequestId(f"r{i}")
            on_event(
                ArriveEvent(
                    t=row.arrival_s,
                    request=name,
                    model=row.model or ModelId("?"),
                    height=row.height,
                    width=row.width,
                    frames=row.frames,
                    steps=row.steps,
                    deadline=row.arrival_s + 2 * config.gpus / 8,
                )
            )
            if row.height > 4096:
                on_event(RejectEvent(row.arrival_s, name, "It fits at no degree."))
                continue
            for third, stage in enumerate(StageKind):
                on_event(
                    RunEvent(
                        start=row.arrival_s + third * self.latency_s / 3,
                        end=row.arrival_s + (third + 1) * self.latency_s / 3,
                        requests=(name,),
                        stage=stage,
                        devices=(DeviceId(f"g{i}"),),
                        degree=1,
                        step_from=0,
                        step_to=row.steps if stage is StageKind.DIFFUSE else 0,
                        activation_bytes=1,
                    )
                )
            on_time = self.latency_s <= 2 * config.gpus / 8
            on_event(FinishEvent(row.arrival_s + self.latency_s, name, on_time))
        return RunFacts(
            decisions=len(rows),
            decision_ms_p50=0.1,
            decision_ms_p99=0.2,
            switches_count=0,
            preemptions=0,
            resizes=0,
            wall_s=0.1,
            simulated_s=10.0,
        )


@pytest.fixture
def instant() -> Instant:
    return Instant()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def invoke(simulator: object, *arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], obj=simulator)


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Error: " in result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_trace_is_replayed_and_summarised(instant: Instant, trace: Path) -> None:
    result = invoke(instant, *SIMULATE, "--trace", trace)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("SIMULATED: policy trident, 8 GPUs")
    assert "3: 2 finished, 1 rejected" in result.stdout
    assert not result.stderr


def test_an_impossible_request_is_reported_with_its_reason(instant: Instant, trace: Path) -> None:
    assert "1 x It fits at no degree." in invoke(instant, *SIMULATE, "--trace", trace).stdout


def test_options_reach_the_simulator(instant: Instant) -> None:
    options = ["--workload", "hetu", "--duration", "60", "--slo-scale", "1.5"]
    options += ["--seed", "7", "--noise", "0.2", "--stragglers", "0.01", "--solver", "greedy"]
    options += [
        "--nodes",
        "2",
        "--fail-node",
        "1@30",
        "--fail-gpu",
        "0:3@20",
        "--switch",
        "scale-up=off",
    ]
    options += ["--policy", "trident"]
    result = invoke(instant, *SIMULATE, *options)
    assert result.exit_code == 0, result.output
    (config,) = instant.configs
    assert (config.profile, config.models, config.policy) == ("l20", ("sd3",), "trident")
    assert (config.gpus, config.nodes, config.seed) == (8, 2, 7)
    assert (config.slo_scale, config.noise, config.stragglers) == (1.5, 0.2, 0.01)
    assert config.failures == (NodeFailure(1, 30.0), NodeFailure(0, 20.0, 3))
    assert (config.dispatcher, config.switches) == ("greedy", {"scale-up": False})
    assert [entry.model for entry in config.mix.classes] == ["sd3"] * 5


def test_how_far_requests_may_be_degraded_reaches_the_simulator(instant: Instant) -> None:
    options = ["--workload", "hetu", "--duration", "60", "--degrade", "--min-steps-share", "0.6"]
    assert invoke(instant, *SIMULATE, *options).exit_code == 0
    (config,) = instant.configs
    assert (config.degrade, config.min_steps_share) == (True, 0.6)


@pytest.mark.parametrize("options", [("--min-steps-share", "0.6"), ("--degrade",)])
def test_half_of_what_degrading_needs_is_refused(
    instant: Instant, options: tuple[str, ...]
) -> None:
    assert_refused(invoke(instant, *HETU, *options), "--min-steps-share")


def test_a_comparison_turns_switches_of_the_policies_that_have_them(instant: Instant) -> None:
    options = ["--workload", "hetu", "--duration", "60", "--compare", "trident,b6"]
    assert invoke(instant, *SIMULATE, *options, "--switch", "spill=off").exit_code == 0
    assert [config.switches for config in instant.configs] == [{"spill": False}, {}]


def test_rate_and_steps_change_a_trace(instant: Instant, trace: Path, tmp_path: Path) -> None:
    options = ("--rate-scale", "2", "--steps", "4", "--events", tmp_path / "e.jsonl")
    assert invoke(instant, *SIMULATE, "--trace", trace, *options).exit_code == 0
    arrivals = [e for e in read_events(tmp_path / "e.jsonl") if isinstance(e, ArriveEvent)]
    assert [event.t for event in arrivals] == [0.0, 0.5, 1.0]
    assert {event.steps for event in arrivals} == {4}


def test_models_share_the_cluster_and_the_workload(instant: Instant, tmp_path: Path) -> None:
    options = ("--model", "flux1", "--workload", "poisson", "--duration", "300")
    options = (*options, "--events", str(tmp_path / "e.jsonl"))
    assert invoke(instant, *SIMULATE, *options).exit_code == 0
    arrivals = [e for e in read_events(tmp_path / "e.jsonl") if isinstance(e, ArriveEvent)]
    assert {event.model for event in arrivals} == {"sd3", "flux1"}
    assert arrivals == sorted(arrivals, key=lambda event: event.t)


def test_events_pass_the_audit(instant: Instant, trace: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert invoke(instant, *SIMULATE, "--trace", trace, "--events", events).exit_code == 0
    assert audit(read_events(events)) == []


def test_json_has_the_promised_fields(instant: Instant, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    assert invoke(instant, *SIMULATE, "--trace", trace, "--json", out).exit_code == 0
    summary = json.loads(out.read_text())
    assert summary["simulated"] is True
    assert (summary["requests"], summary["finished"], summary["rejected"]) == (3, 2, 1)
    assert (summary["workload"], summary["policy"]) == ("trace.csv", "trident")
    assert "python" in summary["versions"]


def test_policies_are_compared_on_the_same_requests(instant: Instant, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    options = (
        "--workload",
        "poisson",
        "--duration",
        "60",
        "--compare",
        "trident,b4",
        "--json",
        out,
    )
    result = invoke(instant, *SIMULATE, *options)
    assert result.exit_code == 0, result.output
    assert [config.policy for config in instant.configs] == ["trident", "b4"]
    rows = [line.split()[0] for line in result.stdout.splitlines()[3:5]]
    assert rows == ["trident", "b4"]
    first, second = json.loads(out.read_text())["summaries"]
    assert first["per_class"] == second["per_class"]


@pytest.mark.parametrize("name", ["out.png", "out.svg"])
def test_a_run_is_drawn(instant: Instant, trace: Path, tmp_path: Path, name: str) -> None:
    result = invoke(instant, *SIMULATE, "--trace", trace, "--plot", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).stat().st_size > 10_000


def test_a_comparison_is_drawn(instant: Instant, trace: Path, tmp_path: Path) -> None:
    options = ("--compare", "trident,b4", "--plot", tmp_path / "out.png")
    assert invoke(instant, *SIMULATE, "--trace", trace, *options).exit_code == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_only_a_terminal_sees_progress() -> None:
    command = [sys.executable, "-c", "from gateway.cli import main; main()", *SIMULATE]
    command += ["--workload", "poisson", "--duration", "20"]
    terminal, stderr = pty.openpty()
    with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=True)
        os.close(stderr)
        shown = screen.read(65536)
    assert b"trident" in shown
    assert b"100%" in shown
    assert done.stdout.startswith(b"SIMULATED")
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b""


def test_capacity_finds_the_least_cluster() -> None:
    slow = Instant(latency_s=4.5)  # on time from 18 GPUs on
    options = ("capacity", "--model", "sd3", "--workload", "poisson", "--duration", "20")
    result = invoke(slow, *options, "--rate", "2", "--target", "0.9")
    assert result.exit_code == 0, result.output
    assert "24 GPUs (3 nodes) reach 90.0%." in result.stdout
    assert result.stdout.startswith("SIMULATED")
    assert {config.gpus // 8 for config in slow.configs} >= {2, 3}


def test_capacity_keeps_the_rate_while_it_searches(tmp_path: Path) -> None:
    slow, out = Instant(latency_s=4.5), tmp_path / "c.json"
    options = ("capacity", "--model", "sd3", "--workload", "hetu", "--duration", "20")
    result = invoke(slow, *options, "--rate", "2", "--rate-scale", "1.5", "--json", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["found"]["nodes"] == 3
    assert found["simulated"] is True


def test_capacity_says_when_the_limit_is_too_low() -> None:
    options = ("capacity", "--model", "sd3", "--workload", "poisson", "--duration", "20")
    result = invoke(Instant(latency_s=1e6), *options, "--rate", "1", "--max-nodes", "2")
    assert_refused(result, "2 nodes do not reach 99.0%", "--max-nodes")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SIMULATE,), ("--trace FILE or --workload",)),
        ((*SIMULATE, "--workload", "hetu", "--trace", "x.csv"), ("--trace FILE or --workload",)),
        ((*SIMULATE, "--trace", "nowhere.csv"), ("nowhere.csv", "No such file")),
        ((*SIMULATE, "--workload", "rush"), ("rush", "hetu")),
        ((*SIMULATE, "--workload", "hetu", "--profile", "b200"), ("b200", "l20")),
        ((*SIMULATE, "--workload", "hetu", "--model", "wan"), ("wan",)),
        ((*SIMULATE, "--workload", "hetu", "--policy", "best"), ("best", "trident")),
        ((*SIMULATE, "--workload", "hetu", "--compare", "b4,best"), ("'best'", "trident-paper")),
        ((*SIMULATE, "--workload", "hetu", "--compare", ","), ("no policy is named",)),
        ((*SIMULATE, "--workload", "hetu", "--compare", "b4", "--events", "e"), ("--events",)),
        ((*SIMULATE, "--workload", "hetu", "--rate-scale", "nan"), ("nan", "finite")),
        ((*SIMULATE, "--workload", "hetu", "--rate-scale", "inf"), ("inf", "finite")),
        ((*SIMULATE, "--workload", "hetu", "--slo-scale", "0"), ("--slo-scale",)),
        ((*SIMULATE, "--workload", "hetu", "--noise", "1"), ("--noise",)),
        ((*SIMULATE, "--workload", "hetu", "--steps", "0"), ("--steps",)),
        ((*SIMULATE, "--workload", "hetu", "--duration", "0.001"), ("no request in 0.001 s",)),
        ((*SIMULATE, "--workload", "hetu", "--fail-node", "3"), ("NODE@SECONDS",)),
        ((*SIMULATE, "--workload", "hetu", "--fail-node", "0@inf"), ("NODE@SECONDS",)),
        ((*SIMULATE, "--workload", "hetu", "--fail-node", "4@60"), ("no node 4", "0 to 0")),
        ((*SIMULATE, "--workload", "hetu", "--fail-node", "0:1@60"), ("NODE@SECONDS",)),
        ((*SIMULATE, "--workload", "hetu", "--fail-gpu", "0@60"), ("NODE:GPU@SECONDS",)),
        ((*SIMULATE, "--workload", "hetu", "--fail-gpu", "0:-1@60"), ("NODE:GPU@SECONDS",)),
        ((*SIMULATE, "--workload", "hetu", "--fail-gpu", "0:8@60"), ("no GPU 0:8", "0 to 7")),
        ((*SIMULATE, "--workload", "hetu", "--switch", "scale-up"), ("NAME=on",)),
        ((*HETU, "--policy", "b6", "--switch", "preempt=off"), ("b6 has no switches", "trident")),
        ((*HETU, "--policy", "b6", "--dispatcher", "ilp"), ("b6 has no switches", "--solver")),
        ((*HETU, "--compare", "b4,b6", "--switch", "spill=off"), ("b4, b6", "--switch")),
        (("capacity", *HETU[1:3], *HETU[5:], "--policy", "b6", "--dispatcher", "ilp"), ("b6",)),
        ((*SIMULATE, "--workload", "hetu", "--json", "/no/such/folder/x"), ("Cannot write",)),
        ((*SIMULATE, "--workload", "hetu", "--json", "/"), ("Cannot write",)),
        ((*SIMULATE, "--workload", "hetu", "--json", "a", "--events", "a"), ("different files",)),
        ((*SIMULATE, "--workload", "hetu", "--plot", "x.bmp"), ("x.bmp", ".png")),
        (("simulate", "--workload", "hetu", "--gpus", "8"), ("--model",)),
        (("simulate", "--workload", "hetu", "--model", "sd3", "--gpus", "0"), ("--gpus",)),
        (("capacity", "--model", "sd3"), ("--trace FILE or --workload",)),
        (("capacity", "--model", "sd3", "--workload", "hetu", "--target", "0"), ("--target",)),
    ],
)
def test_bad_input_is_named_in_a_sentence(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(invoke(Instant(), *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_malformed_trace_names_file_line_and_field(instant: Instant, trace: Path) -> None:
    trace.write_text(TRACE + "3,tall,512,1,20\n")
    assert_refused(
        invoke(instant, *SIMULATE, "--trace", trace), "trace.csv", "line 5", "field height"
    )
    assert instant.configs == []


def test_a_trace_of_a_model_that_is_not_served_is_refused(instant: Instant, trace: Path) -> None:
    trace.write_text("arrival_s,height,width,frames,steps,model\n0,64,64,1,20,flux1\n")
    assert_refused(invoke(instant, *SIMULATE, "--trace", trace), "'flux1'", "--model flux1")


def test_a_trace_without_models_for_several_is_refused(instant: Instant, trace: Path) -> None:
    result = invoke(instant, *SIMULATE, "--model", "flux1", "--trace", trace)
    assert_refused(result, "without a model", "column model")


def test_a_trace_has_its_own_duration(instant: Instant, trace: Path) -> None:
    result = invoke(instant, *SIMULATE, "--trace", trace, "--duration", "60")
    assert_refused(result, "--rate-scale")


def test_a_malformed_profile_is_refused(instant: Instant, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{")
    result = invoke(
        instant, *SIMULATE, "--workload", "hetu", "--profile", tmp_path / "profile.json"
    )
    assert_refused(result, "profile.json")


def test_what_the_simulator_refuses_is_a_sentence(trace: Path) -> None:
    def refuse(*_: object, **__: object) -> RunFacts:
        raise SchedulerError("There is no switch 'x'.")

    assert_refused(invoke(refuse, *SIMULATE, "--trace", trace), "no switch 'x'")


def test_a_full_disk_is_a_sentence(trace: Path) -> None:
    def fill(*_: object, **__: object) -> RunFacts:
        raise OSError(28, "No space left on device", "events.jsonl")

    result = invoke(fill, *SIMULATE, "--trace", trace)
    assert_refused(result, "events.jsonl", "No space left")


def test_without_matplotlib_the_hint_says_what_to_install(
    instant: Instant, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schedulers.sim.plot.find_spec", lambda _: None)
    result = invoke(instant, *SIMULATE, "--trace", trace, "--plot", tmp_path / "x.png")
    assert_refused(result, "matplotlib", "pip install 'tridentserve[sim]'")
    assert instant.configs == []


def test_the_command_does_not_import_matplotlib() -> None:
    code = "import gateway.cli, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_real_core_loop_is_simulated_and_audited(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    options = ("--workload", "poisson", "--duration", "120", "--events", events)
    result = CliRunner().invoke(main, [*SIMULATE, *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "0 rejected" in result.stdout
    assert "info" not in result.output
    assert audit(read_events(events)) == []
