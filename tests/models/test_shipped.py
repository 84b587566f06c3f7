"""The folder that ships: stock classes, small, and it draws what it is asked to draw."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

SHIPPED = Path(__file__).parents[2] / "models" / "shapes"
MODELS = ("shapes", "shapes-128", "shapes-256")

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.skipif(
        not (SHIPPED / "model_index.json").exists(), reason="no weights in models/shapes"
    ),
    # diffusers 0.42 turns tensors into arrays in a way that numpy 2 warns about.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

from diffusers import DiffusionPipeline, StableDiffusionPipeline  # noqa: E402

from models.training.drawing import Sampling, draw_prompts  # noqa: E402
from models.training.scoring import held_out_prompts, score  # noqa: E402
from models.training.sheet import sheet_wishes  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.training.seeing import Pixels


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """The folder, loaded as a user would load it."""
    loaded = DiffusionPipeline.from_pretrained(SHIPPED)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str], **how: int) -> list[Pixels]:
    """First draws with the default settings."""
    return draw_prompts(pipeline, prompts, Sampling(**how))


class TestFolder:
    """What lies in the folder."""

    def test_it_is_a_stock_pipeline(self, pipeline: StableDiffusionPipeline) -> None:
        assert type(pipeline) is StableDiffusionPipeline
        assert pipeline.safety_checker is None

    def test_all_weights_together_stay_small(self) -> None:
        weights = {path.resolve() for path in SHIPPED.parent.glob("*/*/*.safetensors")}
        assert len(weights) == 7
        assert sum(path.stat().st_size for path in weights) < 40_000_000

    @pytest.mark.parametrize("model", MODELS)
    def test_its_settings_fit_its_limits(self, model: str) -> None:
        settings = json.loads((SHIPPED.parent / model / "trident.json").read_text())
        defaults, limits = settings["defaults"], settings["limits"]
        area = defaults["width_px"] * defaults["height_px"]
        assert limits["min_pixels"] <= area <= limits["max_pixels"]

    def test_every_size_between_the_smallest_and_the_largest_is_drawn_by_one_model(self) -> None:
        cards = [json.loads((SHIPPED.parent / m / "trident.json").read_text()) for m in MODELS]
        limits = [card["limits"] for card in cards]
        for smaller, larger in itertools.pairwise(limits):
            assert larger["min_pixels"] == smaller["max_pixels"] + 1
        assert limits[0]["min_pixels"] == 64 * 64
        assert limits[-1]["max_pixels"] >= 256 * 256

    @pytest.mark.parametrize("model", MODELS)
    def test_the_card_was_written_by_the_commands_that_measure(self, model: str) -> None:
        text = (SHIPPED.parent / model / "README.md").read_text()
        assert "Not measured yet" not in text
        assert "Not trained yet" not in text


class TestDrawing:
    """What comes out; a small sample of what `models.training.evaluate` measures."""

    def test_held_out_captions_are_followed(self, pipeline: StableDiffusionPipeline) -> None:
        prompts = held_out_prompts(seed=1, singles=12, pairs=0)
        shares = score(prompts, draw(pipeline, [prompt.text for prompt in prompts]))
        assert shares["colour"].right >= 11
        assert shares["background"].right >= 11
        assert shares["shape"].right >= 10

    def test_a_prompt_draws_the_same_alone_and_in_a_batch(
        self, pipeline: StableDiffusionPipeline
    ) -> None:
        prompt = "a red circle on a blue background"
        alone = draw(pipeline, [prompt])[0].astype(int)
        batched = draw(pipeline, [prompt, "a green star"])[0].astype(int)
        assert np.abs(alone - batched).max() <= 2

    def test_unknown_words_do_no_harm(self, pipeline: StableDiffusionPipeline) -> None:
        strange = "\N{SNOWMAN} 42 elephants!? " * 20
        assert draw(pipeline, [strange, ""])[0].shape == (64, 64, 3)

    def test_other_sizes_can_be_drawn(self, pipeline: StableDiffusionPipeline) -> None:
        picture = draw(pipeline, ["a large red star"], width_px=96, height_px=64)[0]
        assert picture.shape == (64, 96, 3)

    @pytest.mark.parametrize(("model", "side_px"), [("shapes-128", 128), ("shapes-256", 256)])
    def test_larger_models_follow_held_out_captions(self, model: str, side_px: int) -> None:
        loaded = DiffusionPipeline.from_pretrained(SHIPPED.parent / model)
        loaded.set_progress_bar_config(disable=True)
        prompts = held_out_prompts(seed=2, singles=3, pairs=1)
        size = {"width_px": side_px, "height_px": side_px}
        shares = score(prompts, draw(loaded, [prompt.text for prompt in prompts], **size))
        assert shares["colour"].right >= 3
        assert shares["background"].right >= 3
        assert shares["shape"].right >= 3

    def test_the_sheet_holds_only_captions_never_trained(self) -> None:
        assert len(sheet_wishes()) == 16
