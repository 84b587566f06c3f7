"""Data by program: what is drawn is what the caption says, and held-out is never trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.training.captions import plain_background, say
from models.training.outlines import distance
from models.training.painting import as_pixel, draw, second_tone
from models.training.scenes import (
    LEAST_GAP,
    Kind,
    Mix,
    Scene,
    Thing,
    Wish,
    any_wish,
    is_held_out,
    is_pair_held_out,
    is_style_held_out,
    lay_out,
    sample_wish,
)
from models.training.vocabulary import (
    COLOUR_WORDS,
    COLOURS,
    PLACES,
    RADII,
    RELATIONS,
    SHAPES,
    STYLES,
)

ALL_KINDS = [Kind(colour, shape) for colour in COLOURS for shape in SHAPES]


class TestHeldOut:
    """Some combinations stay unseen, so that scores measure understanding."""

    def test_one_of_the_first_ten_shapes_of_each_colour_is_held_out(self) -> None:
        held_out = [kind for kind in ALL_KINDS if is_pair_held_out(kind)]
        first = [kind.colour for kind in held_out if kind.shape in SHAPES[:10]]
        assert first == list(COLOURS)
        assert len(held_out) == len(first) + 4

    def test_every_shape_is_held_out_in_some_colour(self) -> None:
        assert {kind.shape for kind in ALL_KINDS if is_pair_held_out(kind)} == set(SHAPES)

    def test_training_never_draws_a_held_out_combination(self) -> None:
        rng = np.random.default_rng(0)
        assert not any(is_held_out(sample_wish(rng, Mix(styled=0.5))) for _ in range(3000))

    def test_about_a_tenth_of_the_styles_of_a_kind_is_held_out(self) -> None:
        styled = [replace(kind, style=style) for kind in ALL_KINDS for style in STYLES[1:]]
        assert 0.06 < np.mean([is_style_held_out(kind) for kind in styled]) < 0.14

    def test_a_pair_is_held_out_by_its_second_object_too(self) -> None:
        unseen = next(kind for kind in ALL_KINDS if is_pair_held_out(kind))
        seen = next(
            kind for kind in ALL_KINDS if kind.colour == "blue" and not is_pair_held_out(kind)
        )
        assert is_held_out(Wish((seen, unseen), "white"))

    def test_about_a_tenth_of_the_triples_is_held_out(self) -> None:
        triples = [
            is_held_out(Wish((kind,), ground))
            for kind in ALL_KINDS
            for ground in COLOURS
            if not is_pair_held_out(kind)
        ]
        assert 0.08 < np.mean(triples) < 0.12


class TestDrawing:
    """Pixels follow the geometry."""

    def test_same_seed_draws_the_same_picture(self) -> None:
        pictures = []
        for _ in range(2):
            rng = np.random.default_rng(3)
            pictures.append(draw(lay_out(sample_wish(rng, Mix()), rng)))
        assert np.array_equal(*pictures)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_outline_fills_its_frame(self, shape: str) -> None:
        axis = np.linspace(-1.2, 1.2, 481, dtype=np.float32)
        x, y = np.meshgrid(axis, axis)
        inside = distance(shape, x, y) < 0
        reach = max(np.abs(x[inside]).max(), np.abs(y[inside]).max())
        assert reach == pytest.approx(1, abs=0.012)

    def test_object_and_background_have_their_colours(self) -> None:
        scene = Scene((Thing(Kind("red", "square"), 0.5, 0.25, 0.0),), "blue", 96, 64)
        picture = draw(scene)
        assert picture.shape == (64, 96, 3)
        assert np.allclose(picture[32, 56], as_pixel("red"))
        assert np.allclose(picture[2, 2], as_pixel("blue"))

    def test_a_striped_object_has_two_tones_of_its_colour(self) -> None:
        thing = Thing(Kind("red", "square", "striped"), 0.8, 0.0, 0.0)
        column = draw(Scene((thing,), "blue"))[10:54, 32]
        tones = [as_pixel("red"), second_tone("red") / 127.5 - 1]
        for tone in tones:
            assert 0.2 < np.isclose(column, tone, atol=0.02).all(axis=1).mean() < 0.6

    def test_an_outlined_object_is_empty(self) -> None:
        picture = draw(Scene((Thing(Kind("red", "circle", "outlined"), 0.8, 0.0, 0.0),), "blue"))
        assert np.allclose(picture[32, 32], as_pixel("blue"))
        assert np.allclose(picture[32, 8], as_pixel("red"))

    def test_an_arrow_turned_by_a_quarter_points_down(self) -> None:
        upright = draw(Scene((Thing(Kind("red", "arrow"), 0.8, 0.0, 0.0),), "blue"))
        turned = draw(Scene((Thing(Kind("red", "arrow"), 0.8, 0.0, 0.0, np.pi / 2),), "blue"))
        assert np.allclose(turned, np.rot90(upright, -1), atol=1e-3)


class TestLayOut:
    """Geometry fulfils the wish."""

    @pytest.mark.parametrize("place", PLACES)
    def test_stated_place_is_true(self, place: str) -> None:
        rng = np.random.default_rng(1)
        wish = Wish((Kind("red", "star"),), "blue", size="small", place=place)
        for _ in range(50):
            thing = lay_out(wish, rng).things[0]
            signs = tuple(int(np.sign(v)) if abs(v) > 0.15 else 0 for v in (thing.x, thing.y))
            assert signs == PLACES[place]

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize("size_px", [(64, 64), (128, 64), (64, 96)])
    def test_stated_relation_is_true_and_objects_stay_apart(
        self, relation: str, size_px: tuple[int, int]
    ) -> None:
        rng = np.random.default_rng(2)
        wish = Wish((Kind("red", "star"), Kind("green", "ring")), "blue", relation=relation)
        axis = 0 if RELATIONS[relation][0] else 1
        for _ in range(50):
            first, second = lay_out(wish, rng, size_px).things
            apart = (first.x - second.x, first.y - second.y)[axis]
            assert np.sign(apart) == sum(RELATIONS[relation])
            assert abs(apart) >= first.radius + second.radius + LEAST_GAP

    def test_everything_stays_inside_the_picture(self) -> None:
        rng = np.random.default_rng(4)
        for _ in range(500):
            scene = lay_out(any_wish(rng, Mix(jitter=1.0)), rng, (96, 64))
            for thing in scene.things:
                assert abs(thing.x) + thing.radius <= 1.5
                assert abs(thing.y) + thing.radius <= 1.0

    def test_an_unsaid_size_is_medium(self) -> None:
        rng = np.random.default_rng(5)
        thing = lay_out(Wish((Kind("red", "star"),), "blue"), rng).things[0]
        assert thing.radius == pytest.approx(RADII["medium"], rel=0.081)


class TestCaptions:
    """Words follow the wish, with natural variation."""

    def test_plain_wording(self) -> None:
        wish = Wish((Kind("orange", "star"), Kind("yellow", "square")), "black", relation="left of")
        assert say(wish, None) == "an orange star left of a yellow square on a black background"

    def test_every_object_is_named_in_its_colour(self) -> None:
        rng = np.random.default_rng(6)
        for _ in range(300):
            wish = sample_wish(rng, Mix())
            caption = say(wish, rng)
            for kind in wish.kinds:
                assert any(word in caption for word in COLOUR_WORDS[kind.colour])

    def test_background_is_left_out_only_when_it_is_the_plain_one(self) -> None:
        rng = np.random.default_rng(7)
        wishes = [sample_wish(rng, Mix()) for _ in range(2000)]
        silent = [wish for wish in wishes if "back" not in say(wish, rng)]
        assert silent
        assert all(wish.background == plain_background(wish) for wish in silent)

    def test_wording_varies(self) -> None:
        rng = np.random.default_rng(8)
        wish = Wish((Kind("gray", "circle"),), "purple", size="large")
        assert len({say(wish, rng) for _ in range(100)}) > 30
