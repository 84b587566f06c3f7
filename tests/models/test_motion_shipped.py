"""The video folder that ships: stock classes, small, and it films what it is asked to film."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

SHIPPED = Path(__file__).parents[2] / "models" / "motion"

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.skipif(
        not (SHIPPED / "model_index.json").exists(), reason="no weights in models/motion"
    ),
    # diffusers 0.42 turns tensors into arrays in a way that numpy 2 warns about.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

from diffusers import AnimateDiffPipeline, DiffusionPipeline, UNetMotionModel  # noqa: E402

from models.training.motion.filming import Shooting, film_prompts  # noqa: E402
from models.training.motion.movements import BOUNCING, MOVING, ClipWish  # noqa: E402
from models.training.motion.phrases import motion_words, say_clip  # noqa: E402
from models.training.motion.sheet import sheet_wishes  # noqa: E402
from models.training.motion.watching import judge_clip  # noqa: E402
from models.training.scenes import Kind, Wish  # noqa: E402

if TYPE_CHECKING:
    from models.training.motion.watching import Clip


KNOWN = (*MOVING, BOUNCING)


@pytest.fixture(scope="module")
def pipeline() -> AnimateDiffPipeline:
    """The folder, loaded as a user would load it."""
    loaded = DiffusionPipeline.from_pretrained(SHIPPED)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def clips(pipeline: AnimateDiffPipeline) -> dict[str, Clip]:
    """One first draw per movement, with fewer steps than by default to save time."""
    wishes = [wish_of(movement) for movement in ("right", "left", "growing")]
    prompts = [say_clip(wish, None) for wish in wishes]
    filmed = film_prompts(pipeline, prompts, Shooting(steps=8, seed=5))
    return {wish.movement: clip for wish, clip in zip(wishes, filmed, strict=True)}


def wish_of(movement: str) -> ClipWish:
    """An easy look, so that the movement is what is tested."""
    return ClipWish(Wish((Kind("red", "circle"),), "blue"), movement)


class TestFolder:
    """What lies in the folder."""

    def test_it_is_a_stock_pipeline(self, pipeline: AnimateDiffPipeline) -> None:
        assert type(pipeline) is AnimateDiffPipeline
        assert type(pipeline.unet) is UNetMotionModel

    def test_the_motion_weights_are_stored_once(self, pipeline: AnimateDiffPipeline) -> None:
        assert pipeline.motion_adapter is None
        assert not (SHIPPED / "motion_adapter").exists()
        gates = [
            parameter.abs().max()
            for name, parameter in pipeline.unet.named_parameters()
            if name.endswith("proj_out.weight") and "motion_modules" in name
        ]
        assert len(gates) == 7
        assert min(gates) > 0

    def test_it_stays_small(self) -> None:
        assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 22_000_000

    def test_its_settings_fit_its_limits(self) -> None:
        settings = json.loads((SHIPPED / "trident.json").read_text())
        defaults, limits = settings["defaults"], settings["limits"]
        assert 0 < defaults["width_px"] * defaults["height_px"] <= limits["max_pixels"]
        assert 0 < defaults["frames"] <= limits["max_frames"] == 33

    def test_its_tokenizer_knows_the_movements(self, pipeline: AnimateDiffPipeline) -> None:
        assert all(len(pipeline.tokenizer.tokenize(word)) == 1 for word in motion_words(KNOWN))

    def test_the_card_was_written_by_the_commands_that_measure(self) -> None:
        text = (SHIPPED / "README.md").read_text()
        assert "Not measured yet" not in text
        assert "Not trained yet" not in text

    def test_the_sheet_holds_only_captions_never_trained(self) -> None:
        assert len(sheet_wishes()) == 12

    def test_larger_clips_share_every_part(self) -> None:
        larger = SHIPPED.with_name("motion-128")
        parts = {path.name: path.resolve().parent.name for path in larger.iterdir()}
        assert parts["vae"] == "shapes-128"
        assert {parts[name] for name in ("unet", "text_encoder", "tokenizer")} == {"motion"}
        assert "Not measured yet" not in (larger / "README.md").read_text()

    def test_larger_clips_show_what_is_asked(self) -> None:
        loaded = DiffusionPipeline.from_pretrained(SHIPPED.with_name("motion-128"))
        loaded.set_progress_bar_config(disable=True)
        shooting = Shooting(steps=8, width_px=128, height_px=128, seed=5)
        wish = wish_of("right")
        verdict = judge_clip(film_prompts(loaded, [say_clip(wish, None)], shooting)[0], wish)
        assert verdict.colour
        assert verdict.background
        assert verdict.direction


class TestFilming:
    """What comes out; a small sample of what `models.training.motion.evaluate` measures."""

    def test_the_object_is_the_asked_one(self, clips: dict[str, Clip]) -> None:
        for movement, clip in clips.items():
            verdict = judge_clip(clip, wish_of(movement))
            assert verdict.present, movement
            assert verdict.colour, movement
            assert verdict.background, movement

    def test_it_moves_as_asked(self, clips: dict[str, Clip]) -> None:
        right = [judge_clip(clip, wish_of(name)).direction for name, clip in clips.items()]
        assert sum(right) >= 2

    def test_the_word_decides_the_direction(self, clips: dict[str, Clip]) -> None:
        assert not judge_clip(clips["left"], wish_of("right")).direction
        assert not judge_clip(clips["right"], wish_of("left")).direction

    def test_a_longer_clip_moves_as_asked_too(self, pipeline: AnimateDiffPipeline) -> None:
        wish = wish_of("right")
        shooting = Shooting(steps=8, frames=17, seed=5)
        verdict = judge_clip(film_prompts(pipeline, [say_clip(wish, None)], shooting)[0], wish)
        assert verdict.present
        assert verdict.colour
        assert verdict.background
        assert verdict.direction

    def test_unknown_words_do_no_harm(self, pipeline: AnimateDiffPipeline) -> None:
        strange = "\N{SNOWMAN} 42 elephants!? " * 20
        clip = film_prompts(pipeline, [strange], Shooting(steps=2))[0]
        assert clip.shape == (9, 64, 64, 3)
        assert clip.dtype == np.uint8
