"""The judge is validated before any model is judged: it accepts what is right, refuses the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.training.checker import judge
from models.training.painting import as_pixel, draw, second_tone
from models.training.scenes import Kind, Mix, Scene, Thing, Wish, any_wish, lay_out
from models.training.scoring import styled_prompts
from models.training.seeing import Pixels, see
from models.training.vocabulary import COLOURS, HOLLOW_SHAPES, RELATIONS, SHAPES, STYLES

SHIPPED = Path(__file__).parents[2] / "models" / "shapes"
WISH = Wish((Kind("red", "star"),), "blue", size="medium")


def as_bytes(picture: np.ndarray) -> Pixels:
    """Pixels as a viewer gets them."""
    return ((picture + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def drawn(wish: Wish, seed: int = 0, size_px: tuple[int, int] = (64, 64)) -> Pixels:
    """One drawing that fulfils the wish."""
    return as_bytes(draw(lay_out(wish, np.random.default_rng(seed), size_px)))


def blob(rng: np.random.Generator) -> Pixels:
    """A lumpy red island on blue: right colours, no shape."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    waves = sum(
        rng.choice((-1, 1)) * 0.22 * np.cos(order * angle + rng.uniform(0, 6))
        for order in (2, 3, 5)
    )
    inside = (radius < 0.55 * (1 + waves))[..., None]
    return as_bytes(np.where(inside, as_pixel("red"), as_pixel("blue")))


class TestRightPictures:
    """Everything drawn by the program is accepted."""

    @pytest.mark.parametrize("size_px", [(64, 64), (96, 64), (128, 128), (128, 256)])
    @pytest.mark.parametrize("pairs", [0.0, 1.0])
    def test_real_drawings_are_right(self, pairs: float, size_px: tuple[int, int]) -> None:
        rng = np.random.default_rng(11)
        wishes = [any_wish(rng, Mix(pairs=pairs)) for _ in range(60)]
        verdicts = [
            judge(as_bytes(draw(lay_out(wish, rng, size_px))), wish).is_right for wish in wishes
        ]
        assert np.mean(verdicts) >= 0.99

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape_is_recognised_when_small(self, shape: str) -> None:
        seen = see(drawn(Wish((Kind("red", shape),), "blue", size="small")))
        assert [thing.shape for thing in seen.things] == [shape]

    @pytest.mark.parametrize("colour", COLOURS)
    def test_every_colour_is_recognised(self, colour: str) -> None:
        ground = "white" if colour != "white" else "black"
        seen = see(drawn(Wish((Kind(colour, "heart"),), ground)))
        assert ([thing.colour for thing in seen.things], seen.background) == ([colour], ground)

    @pytest.mark.parametrize("size_px", [(64, 64), (64, 128), (256, 256)])
    def test_styled_drawings_are_right(self, size_px: tuple[int, int]) -> None:
        wishes = [prompt.wish for prompt in styled_prompts(16, 40)]
        verdicts = [judge(drawn(wish, 1, size_px), wish).is_right for wish in wishes]
        assert np.mean(verdicts) >= 0.98

    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in HOLLOW_SHAPES])
    def test_every_style_is_recognised(self, shape: str, style: str) -> None:
        seen = see(drawn(Wish((Kind("red", shape, style),), "blue", size="medium")))
        assert [(t.colour, t.shape, t.style) for t in seen.things] == [("red", shape, style)]

    @pytest.mark.parametrize("colour", COLOURS)
    def test_every_colour_is_recognised_in_stripes(self, colour: str) -> None:
        ground = "blue" if colour != "blue" else "white"
        seen = see(drawn(Wish((Kind(colour, "heart", "striped"),), ground)))
        assert [(t.colour, t.style) for t in seen.things] == [(colour, "striped")]

    def test_a_little_noise_does_not_matter(self) -> None:
        noise = np.random.default_rng(0).normal(0, 6, (64, 64, 3))
        picture = (drawn(WISH) + noise).clip(0, 255).astype(np.uint8)
        assert judge(picture, WISH).is_right


class TestWrongPictures:
    """Each kind of mistake costs its own point."""

    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "star"])
    def test_wrong_shape(self, shape: str) -> None:
        verdict = judge(drawn(replace(WISH, kinds=(Kind("red", shape),))), WISH)
        assert (verdict.colour, verdict.shape, verdict.is_right) == (True, False, False)

    @pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour not in "red blue"])
    def test_wrong_colour(self, colour: str) -> None:
        verdict = judge(drawn(replace(WISH, kinds=(Kind(colour, "star"),))), WISH)
        assert (verdict.colour, verdict.shape, verdict.is_right) == (False, True, False)

    def test_wrong_background(self) -> None:
        verdict = judge(drawn(replace(WISH, background="green")), WISH)
        assert (verdict.background, verdict.is_right) == (False, False)

    @pytest.mark.parametrize("style", STYLES)
    def test_wrong_style(self, style: str) -> None:
        asked = [replace(WISH, kinds=(Kind("red", "star", other),)) for other in STYLES]
        picture = drawn(asked[STYLES.index(style)])
        assert [judge(picture, wish).style for wish in asked] == [o == style for o in STYLES]

    def test_a_ring_is_no_outlined_circle(self) -> None:
        ring, circle = (
            Wish((kind,), "blue")
            for kind in (Kind("red", "ring"), Kind("red", "circle", "outlined"))
        )
        assert judge(drawn(ring), circle).is_right is False
        assert judge(drawn(circle), ring).is_right is False

    def test_stripes_from_left_to_right_are_no_stripes(self) -> None:
        wish = Wish((Kind("red", "square", "striped"),), "blue")
        assert judge(drawn(wish).transpose(1, 0, 2), wish).is_right is False

    def test_two_halves_are_no_stripes(self) -> None:
        wish = Wish((Kind("red", "square", "striped"),), "blue")
        picture = drawn(replace(wish, kinds=(Kind("red", "square"),)))
        rows = np.arange(64)[:, None] < np.mean(np.nonzero((picture != picture[0, 0]).any(2))[0])
        red = (picture == COLOURS["red"]).all(axis=2)
        picture[red & rows] = second_tone("red")
        assert judge(picture, wish).style is False

    @pytest.mark.parametrize("shape", ["circle", "square", "star"])
    def test_a_broken_outline_is_no_shape(self, shape: str) -> None:
        wish = Wish((Kind("red", shape, "outlined"),), "blue", size="large")
        picture = drawn(wish)
        picture[28:36] = picture[0, 0]
        assert judge(picture, wish).is_right is False

    @pytest.mark.parametrize("size", ["small", "large"])
    def test_wrong_size(self, size: str) -> None:
        assert judge(drawn(replace(WISH, size=size)), WISH).size is False

    def test_wrong_place(self) -> None:
        wish = replace(WISH, size="small", place="top left")
        verdict = judge(drawn(wish)[::-1, ::-1], replace(wish, kinds=(Kind("red", "star"),)))
        assert verdict.position is False

    @pytest.mark.parametrize("relation", RELATIONS)
    def test_wrong_relation(self, relation: str) -> None:
        wish = Wish((Kind("red", "star"), Kind("green", "ring")), "blue", relation=relation)
        verdicts = [judge(drawn(wish), replace(wish, relation=other)) for other in RELATIONS]
        assert [verdict.position for verdict in verdicts] == [o == relation for o in RELATIONS]

    def test_colours_bound_to_the_wrong_shapes(self) -> None:
        kinds = (Kind("red", "star"), Kind("green", "ring"))
        swapped = (Kind("green", "star"), Kind("red", "ring"))
        picture = drawn(Wish(swapped, "blue", relation="left of"))
        verdict = judge(picture, Wish(kinds, "blue", relation="left of"))
        assert (verdict.present, verdict.is_right) == (True, False)
        assert verdict.shape is False

    def test_one_object_of_two_is_missing(self) -> None:
        wish = Wish((Kind("red", "star"), Kind("green", "ring")), "blue")
        assert judge(drawn(WISH), wish).present is False

    def test_one_object_too_many(self) -> None:
        two = Wish((Kind("red", "star"), Kind("green", "ring")), "blue")
        assert judge(drawn(two), WISH).present is False

    def test_objects_that_touch_are_no_two_objects(self) -> None:
        things = tuple(
            Thing(Kind(colour, "square"), 0.4, x, 0.0)
            for colour, x in (("red", -0.3), ("green", 0.3))
        )
        wish = Wish(tuple(thing.kind for thing in things), "blue")
        assert judge(as_bytes(draw(Scene(things, "blue"))), wish).is_right is False


class TestNoPictures:
    """What is no drawing at all is never right."""

    def test_blobs_have_no_shape(self) -> None:
        rng = np.random.default_rng(12)
        named = [see(blob(rng)).things[0].shape is not None for _ in range(60)]
        assert np.mean(named) <= 0.1

    def test_blobs_keep_their_colour(self) -> None:
        assert see(blob(np.random.default_rng(13))).things[0].colour == "red"

    def test_noise_shows_nothing(self) -> None:
        rng = np.random.default_rng(14)
        seen = see(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        assert seen.background is None
        assert all(thing.colour is None and thing.shape is None for thing in seen.things)

    def test_an_empty_picture_holds_no_object(self) -> None:
        empty = as_bytes(np.broadcast_to(as_pixel("blue"), (64, 64, 3)))
        verdict = judge(empty, WISH)
        assert (verdict.present, verdict.colour, verdict.background) == (False, False, True)

    def test_a_gradient_is_no_background(self) -> None:
        ramp = np.linspace(0, 255, 64).astype(np.uint8)
        assert see(np.broadcast_to(ramp[:, None, None], (64, 64, 3))).background is None


@pytest.mark.skipif(
    not (SHIPPED / "vae" / "diffusion_pytorch_model.safetensors").exists(),
    reason="no weights in models/shapes",
)
class TestReconstructions:
    """The decoder must not cost the judge anything, or no denoiser could pass."""

    @pytest.mark.parametrize(
        ("model", "size_px", "count"),
        [
            ("shapes", (64, 64), 60),
            ("shapes", (96, 64), 100),  # one striped drawing in 200 is refused as drawn
            ("shapes-128", (128, 128), 30),
            ("shapes-128", (192, 128), 20),
            ("shapes-256", (256, 256), 12),
        ],
    )
    @pytest.mark.parametrize("sort", ["single", "styled", "pair"])
    def test_reconstructions_are_right(
        self, sort: str, model: str, size_px: tuple[int, int], count: int
    ) -> None:
        import torch  # noqa: PLC0415 - heavy, and only here
        from diffusers import AutoencoderKL  # noqa: PLC0415

        from models.training.batches import as_pixels, pictures_of  # noqa: PLC0415

        rng = np.random.default_rng(15)
        mix = Mix(pairs=float(sort == "pair"))
        wishes = [any_wish(rng, mix) for _ in range(count)]
        if sort == "styled":
            wishes = [prompt.wish for prompt in styled_prompts(15, count)]
        scenes = [lay_out(wish, rng, size_px) for wish in wishes]
        pictures = pictures_of(scenes, torch.device("cpu"))
        autoencoder = AutoencoderKL.from_pretrained(SHIPPED.parent / model, subfolder="vae")
        with torch.no_grad():
            latents = [autoencoder.encode(p).latent_dist.mode() for p in pictures.split(10)]
            decoded = as_pixels(torch.cat([autoencoder.decode(part).sample for part in latents]))
        verdicts = [judge(p, wish).is_right for p, wish in zip(decoded, wishes, strict=True)]
        assert np.mean(verdicts) >= 0.98
