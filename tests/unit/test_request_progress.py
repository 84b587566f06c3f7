"""How far a request is: the denoise steps of all its outputs."""

from __future__ import annotations

from engine.graph import StageNode
from engine.pipelines import build
from engine.runs import RequestRun
from engine.types import Assignment, HandoffRef, NodeId, TaskId
from tests.support.builders import a_request, a_spec


def begin(run: RequestRun, node: StageNode) -> TaskId:
    task = next(task for task in run.ready_tasks() if task.node == node.id)
    run.begin(Assignment(task=task, team=(), expected_s=1.0, activation_bytes=0, why=""))
    return task.id


def finish(run: RequestRun, task: TaskId) -> None:
    node = run.running.pop(task).task.node
    run.progress.complete(node, HandoffRef(node, "path", 1))


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
    run.retry(assignment.task, 1.0)
    waiting = run.share_done
    begin(run, diffuse)
    assert (waiting, run.share_done) == (0.0, 0.0)
