"""The judge of clips is validated before any model is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.training.motion.courses import track_of
from models.training.motion.movements import (
    BOUNCING,
    EVERY_MOVING,
    HEADINGS,
    MOVING,
    ROUND_SHAPES,
    STILL,
    TURNING,
    ClipWish,
    is_clip_held_out,
    is_straight,
    lay_out_clip,
    sample_clip_wish,
)
from models.training.motion.phrases import say_clip
from models.training.motion.scoring import SORTS, held_out_clip_prompts, judge_all, shares_of
from models.training.motion.watching import POINTS, Clip, judge_clip
from models.training.painting import draw
from models.training.scenes import Kind, Wish
from models.training.seeing import see
from models.training.vocabulary import SHAPES

SHIPPED = Path(__file__).parents[2] / "models" / "motion"
LOOK = Wish((Kind("red", "star"),), "blue")


def filmed(wish: ClipWish, seed: int = 0, frames: int = 9, side_px: int = 64) -> Clip:
    """One drawn clip that fulfils the wish, as a viewer gets it."""
    scenes = lay_out_clip(wish, np.random.default_rng(seed), frames, side_px)
    stacked = np.stack([draw(scene) for scene in scenes])
    return ((stacked + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def is_seen_in_shape(movement: str, other: str) -> bool:
    """Something that turns rests where it is: that it is no longer upright gives it away."""
    return (movement, other) == (TURNING, STILL)


class TestRightClips:
    """Clips that show what was asked."""

    @pytest.mark.parametrize(
        ("frames", "side_px", "count"), [(9, 64, 24), (17, 96, 9), (33, 128, 3)]
    )
    def test_every_point_of_drawn_clips_is_right(
        self, frames: int, side_px: int, count: int
    ) -> None:
        prompts = held_out_clip_prompts(3, count, EVERY_MOVING)
        clips = [filmed(p.wish, seed, frames, side_px) for seed, p in enumerate(prompts)]
        verdicts = judge_all(prompts, clips)
        assert [(p, v) for p, v in zip(prompts, verdicts, strict=True) if not v.is_right] == []
        assert shares_of(verdicts)["all"].right == count

    @pytest.mark.parametrize("shape", [s for s in SHAPES if s not in ROUND_SHAPES])
    def test_every_shape_is_seen_to_turn(self, shape: str) -> None:
        wish = ClipWish(Wish((Kind("red", shape),), "blue"), TURNING)
        assert judge_clip(filmed(wish), wish).is_right

    def test_a_clip_without_a_movement_may_stand_still(self) -> None:
        assert judge_clip(filmed(ClipWish(LOOK, STILL)), ClipWish(LOOK, STILL)).is_right

    @pytest.mark.skipif(
        not (SHIPPED / "vae" / "config.json").exists(), reason="no weights in models/motion"
    )
    def test_every_point_survives_the_autoencoder(self) -> None:
        torch = pytest.importorskip("torch")
        diffusers = pytest.importorskip("diffusers")
        vae = diffusers.AutoencoderKL.from_pretrained(SHIPPED / "vae")
        for seed, movement in enumerate(EVERY_MOVING):
            wish = ClipWish(LOOK, movement)
            pixels = torch.from_numpy(filmed(wish, seed)).permute(0, 3, 1, 2) / 127.5 - 1
            with torch.no_grad():
                decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
            shown = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
            assert judge_clip(shown.numpy(), wish).is_right, movement


class TestWrongClips:
    """Clips that are wrong on purpose; each kind of wrong is refused at its own point."""

    @pytest.mark.parametrize("movement", EVERY_MOVING)
    def test_other_movements_are_refused(self, movement: str) -> None:
        clip = filmed(ClipWish(LOOK, movement))
        for other in HEADINGS:
            verdict = judge_clip(clip, ClipWish(LOOK, other))
            assert verdict.is_right == (other == movement), other
            assert verdict.direction == (other == movement) or is_seen_in_shape(movement, other)

    @pytest.mark.parametrize("movement", MOVING)
    def test_a_reversed_clip_goes_the_wrong_way(self, movement: str) -> None:
        wish = ClipWish(LOOK, movement)
        verdict = judge_clip(filmed(wish)[::-1], wish)
        assert not verdict.direction
        assert verdict.smooth

    @pytest.mark.parametrize("movement", EVERY_MOVING)
    def test_a_frozen_clip_goes_nowhere(self, movement: str) -> None:
        wish = ClipWish(LOOK, movement)
        assert not judge_clip(filmed(wish)[:1].repeat(9, axis=0), wish).direction

    @pytest.mark.parametrize("movement", EVERY_MOVING)
    def test_shuffled_frames_are_not_smooth(self, movement: str) -> None:
        wish = ClipWish(LOOK, movement)
        shuffled = filmed(wish)[[3, 0, 7, 1, 8, 4, 2, 6, 5]]
        assert not judge_clip(shuffled, wish).smooth

    def test_a_straight_fall_is_no_bounce(self) -> None:
        for movement in ("up", "down", "left", "growing"):
            wish = ClipWish(LOOK, BOUNCING)
            assert not judge_clip(filmed(ClipWish(LOOK, movement)), wish).direction

    def test_half_a_bounce_is_no_bounce(self) -> None:
        wish = ClipWish(LOOK, BOUNCING)
        clip = filmed(wish)
        assert not judge_clip(clip[[0, 0, 1, 1, 2, 2, 3, 3, 4]], wish).is_right

    def test_turning_to_and_fro_is_no_turning(self) -> None:
        wish = ClipWish(LOOK, TURNING)
        clip = filmed(wish)
        assert not judge_clip(clip[[0, 1, 2, 1, 0, 1, 2, 1, 0]], wish).direction

    def test_another_shape_that_turns_is_refused(self) -> None:
        arrow = ClipWish(Wish((Kind("red", "arrow"),), "blue"), TURNING)
        verdict = judge_clip(filmed(arrow), ClipWish(LOOK, TURNING))
        assert not verdict.shape

    def test_a_jump_in_the_middle_is_not_smooth(self) -> None:
        wish = ClipWish(LOOK, "right")
        clip = filmed(wish)
        clip[1:8] = clip[[0, 0, 0, 0, 8, 8, 8]]
        assert not judge_clip(clip, wish).smooth

    def test_a_vanished_object_is_not_smooth(self) -> None:
        wish = ClipWish(LOOK, "right")
        clip = filmed(wish)
        clip[4] = clip[4, 0, 0]
        verdict = judge_clip(clip, wish)
        assert verdict.present
        assert not verdict.smooth

    def test_noise_shows_nothing(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3)).astype(np.uint8)
        verdict = judge_clip(noise, ClipWish(LOOK, "left"))
        assert not any(getattr(verdict, point) for point in POINTS if point != "present")

    def test_an_empty_clip_moves_nothing(self) -> None:
        empty = np.full((9, 64, 64, 3), (40, 75, 220), np.uint8)
        verdict = judge_clip(empty, ClipWish(LOOK, "left"))
        assert verdict.background
        wrong = [point for point in POINTS if not getattr(verdict, point)]
        assert wrong == ["present", "colour", "shape", "direction", "smooth"]

    @pytest.mark.parametrize(
        ("look", "point"),
        [
            (Wish((Kind("green", "star"),), "blue"), "colour"),
            (Wish((Kind("red", "circle"),), "blue"), "shape"),
            (Wish((Kind("red", "star"),), "pink"), "background"),
        ],
    )
    def test_wrong_looks_are_refused(self, look: Wish, point: str) -> None:
        verdict = judge_clip(filmed(ClipWish(LOOK, "up")), ClipWish(look, "up"))
        wrong = [name for name in POINTS if not getattr(verdict, name)]
        assert wrong == [point]


class TestData:
    """The clips and their captions."""

    def test_nothing_held_out_is_ever_trained(self) -> None:
        rng = np.random.default_rng(0)
        assert not any(is_clip_held_out(sample_clip_wish(rng)) for _ in range(500))

    def test_held_out_captions_cover_all_sorts_and_movements(self) -> None:
        prompts = held_out_clip_prompts(seed=0, count=90)
        assert all(is_clip_held_out(prompt.wish) for prompt in prompts)
        assert {prompt.wish.movement for prompt in prompts} == set(MOVING)
        assert [sum(map(test, (p.wish for p in prompts))) for test in SORTS.values()] == [30] * 3

    def test_the_object_never_leaves_the_picture(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(200):
            for scene in lay_out_clip(sample_clip_wish(rng), rng):
                thing = scene.things[0]
                assert thing.angle == 0 or thing.kind.shape not in ROUND_SHAPES
                assert max(abs(thing.x), abs(thing.y)) + thing.radius <= 1

    def test_a_drawn_clip_moves_as_its_heading_says(self) -> None:
        for name, heading in HEADINGS.items():
            if not is_straight(name):
                continue
            track = track_of([see(frame) for frame in filmed(ClipWish(LOOK, name), seed=2)])
            change = track[-1] - track[0]
            assert np.sign(np.where(np.abs(change) < 0.1, 0, change)).tolist() == list(heading)

    def test_the_caption_names_the_movement(self) -> None:
        wish = ClipWish(LOOK, "right")
        assert say_clip(wish, None) == "a red star moving right on a blue background"
        said = {say_clip(wish, np.random.default_rng(seed)) for seed in range(200)}
        assert all("right" in caption for caption in said)
        assert len(said) > 40
