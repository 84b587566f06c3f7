"""How far a request is: the denoise steps of all its outputs."""

from __future__ import annotations

from engine.flights import Flight
from engine.graph import StageNode
from engine.pipelines import build
from engine.runs import RequestRun
from engine.types import Assignment, HandoffRef, NodeId, PlanId, SavedLatent, StageTask
from tests.support.builders import a_report, a_request, a_spec, a_timing


def begin(run: RequestRun, node: StageNode) -> StageTask:
    task = next(task for task in run.ready_tasks() if task.node == node.id)
    launch = Assignment(task=task, team=(), expected_s=1.0, activation_bytes=0, why="")
    run.begin(task, launch)
    return task


def finish(run: RequestRun, task: StageTask) -> None:
    run.complete(task, a_report(task, output=HandoffRef(task.node, "path", 1)), a_timing(task), 1.0)


async def test_the_share_counts_steps_of_all_outputs_and_outlives_a_stage() -> None:
    request = a_request(n=2, steps=4)
    run = RequestRun(request, build(a_spec(), request), 0, 0.0)
    nodes = run.progress.graph.nodes
    shares = [run.share_done]
    finish(run, begin(run, nodes[NodeId("encode")]))
    shares.append(run.share_done)
    task = begin(run, nodes[NodeId("diffuse-0")])
    run.note_step(task, 3, 4)
    shares.append(run.share_done)
    finish(run, task)
    shares.append(run.share_done)
    second = begin(run, nodes[NodeId("diffuse-1")])
    run.note_step(task, 1, 4)  # a late report of what is over
    run.note_step(second, 4, 4)
    shares.append(run.share_done)
    assert shares == [0.0, 0.0, 0.375, 0.5, 1.0]


async def test_a_stage_that_starts_over_counts_from_zero() -> None:
    request = a_request(steps=4)
    run = RequestRun(request, build(a_spec(), request), 0, 0.0)
    finish(run, begin(run, run.progress.graph.nodes[NodeId("encode")]))
    diffuse = run.progress.graph.nodes[NodeId("diffuse-0")]
    run.note_step(begin(run, diffuse), 3, 4)
    (assignment,) = (a for a in run.running.values() if a.task.node == diffuse.id)
    run.retry(assignment.task, 1.0, failed_on=(), counted=True)
    waiting = run.share_done
    begin(run, diffuse)
    assert (waiting, run.share_done) == (0.0, 0.0)


async def test_a_paused_diffuse_keeps_its_steps_and_goes_on_from_its_latent() -> None:
    request = a_request(steps=4)
    run = RequestRun(request, build(a_spec(), request), 0, 0.0)
    finish(run, begin(run, run.progress.graph.nodes[NodeId("encode")]))
    diffuse = run.progress.graph.nodes[NodeId("diffuse-0")]
    first = begin(run, diffuse)
    latent = HandoffRef(diffuse.id, "latent-1", 1)
    pausing = a_report(first, steps_done=1, paused=True, output=latent)
    assert run.suspend(first, pausing, a_timing(first), 1.0) == ()
    second = begin(run, diffuse)
    assert (second.saved, second.steps_left, run.mishaps.counted[diffuse.id]) == (
        SavedLatent(1, latent),
        3,
        0,
    )
    assert run.share_done == 0.25
    newer = HandoffRef(diffuse.id, "latent-2", 1)
    again = a_report(second, steps_done=2, paused=True, output=newer)
    assert run.suspend(second, again, a_timing(second), 2.0) == (latent,)
    assert run.share_done == 0.5
    assert newer in run.abandon()


async def test_policies_count_the_steps_of_the_request_whatever_its_sampler_makes_of_them() -> None:
    request = a_request(steps=4)
    run = RequestRun(request, build(a_spec(), request), 0, 0.0)
    finish(run, begin(run, run.progress.graph.nodes[NodeId("encode")]))
    task = run.task(NodeId("diffuse-0"))
    launch = Assignment(task=task, team=(), expected_s=7.0, activation_bytes=0, why="")
    flight, seen = Flight(launch, [run], PlanId(1), 0.0), []
    for evaluation in range(1, 8):  # Heun's method: two of them per step, one for the last
        flight.note_step(evaluation, 7, float(evaluation))
        seen.append((flight.view().step, flight.view().step_at_s))
    assert seen == [(0, 0.0), (1, 2.0), (1, 2.0), (2, 4.0), (2, 4.0), (3, 6.0), (4, 7.0)]
    assert run.share_done == 1.0
