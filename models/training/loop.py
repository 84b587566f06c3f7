"""The training loop: resumable, with checkpoints by the clock, a progress bar and a loss log.

Knows nothing about what is trained: a stage says how to take one step and what its state is.
Schedules depend on pictures seen, never on time, and every step draws its randomness from
(seed, step), so a run that was stopped and resumed sees the same pictures as one that was not.
"""

from __future__ import annotations

import csv
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOG_EVERY_STEPS = 25


class Stage(Protocol):
    """Something that can be trained picture by picture."""

    name: str
    batch: int

    def step(self, progress: float, rng: np.random.Generator) -> float:
        """Train on one batch at a progress of 0 to 1; the loss comes back."""

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later, as tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""


@dataclass(slots=True)
class Position:
    """How far a stage has come: steps taken and seconds of training spent, over all resumes."""

    steps: int = 0
    spent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train and how often to save and look.

    Attributes:
        pictures: Length of the whole training, in pictures.
        save_every_s: Wall-clock seconds between checkpoints.
        look_every: Pictures between calls of `look`.
        seed: Of the data and the noise.
    """

    pictures: int
    save_every_s: float = 150.0
    look_every: int = 40_000
    seed: int = 7


def train(
    stage: Stage, schedule: Schedule, folder: Path, look: Callable[[Position], None]
) -> Position:
    """Train until the schedule ends, from the last checkpoint in `folder` if there is one."""
    position = resume(stage, folder)
    total = -(-schedule.pictures // stage.batch)
    looks_every = max(1, schedule.look_every // stage.batch)
    began = last_save = time.monotonic()
    before_s = position.spent_s
    recent: list[float] = []
    bar = tqdm(total=total * stage.batch, initial=position.steps * stage.batch, unit="img")
    bar.set_description(stage.name)
    while position.steps < total:
        rng = np.random.default_rng((schedule.seed, position.steps))
        recent.append(stage.step(position.steps / total, rng))
        position.steps += 1
        position.spent_s = before_s + time.monotonic() - began
        bar.update(stage.batch)
        if len(recent) == LOG_EVERY_STEPS or position.steps == total:
            bar.set_postfix(loss=f"{np.mean(recent):.4f}")
            _log(folder / f"{stage.name}.csv", position, stage.batch, float(np.mean(recent)))
            recent.clear()
        if time.monotonic() - last_save > schedule.save_every_s:
            save(stage, position, folder)
            last_save = time.monotonic()
        if position.steps % looks_every == 0 or position.steps == total:
            save(stage, position, folder)
            look(position)
    bar.close()
    return position


def save(stage: Stage, position: Position, folder: Path) -> None:
    """Write the checkpoint beside the old one, then replace it in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{stage.name}.pt"
    partial = target.with_suffix(".partial")
    content = {"steps": position.steps, "spent_s": position.spent_s, "stage": stage.state()}
    torch.save(content, partial)
    os.replace(partial, target)  # noqa: PTH105 - atomic on every platform


def resume(stage: Stage, folder: Path) -> Position:
    """Restore the stage from its checkpoint; a new start if there is none."""
    target = folder / f"{stage.name}.pt"
    if not target.exists():
        return Position()
    content = torch.load(target, weights_only=True, map_location="cpu")
    stage.restore(content["stage"])
    return Position(content["steps"], content["spent_s"])


def _log(path: Path, position: Position, batch: int, loss: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        pictures = position.steps * batch
        csv.writer(file).writerow((pictures, f"{position.spent_s:.1f}", f"{loss:.6f}"))
