"""The parts that are exact by construction: latents, tokenizer, optimiser, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from models.training.assembly import assemble  # noqa: E402
from models.training.autoencoder import (  # noqa: E402
    build_autoencoder,
    fold,
    start_decoder_from,
    unfold,
)
from models.training.batches import pictures_of  # noqa: E402
from models.training.captions import say  # noqa: E402
from models.training.decoder import DecoderStage, enlarged  # noqa: E402
from models.training.denoiser import build_text_encoder  # noqa: E402
from models.training.device import best_device  # noqa: E402
from models.training.diffusion import WIDER, DenoiserStage  # noqa: E402
from models.training.grow import grow_text_encoder  # noqa: E402
from models.training.loop import Position, Schedule, resume, train  # noqa: E402
from models.training.muon import Muon, orthogonalise  # noqa: E402
from models.training.scenes import Kind, Mix, Wish, any_wish, lay_out  # noqa: E402
from models.training.tokens import (  # noqa: E402
    MAX_TOKENS,
    build_tokenizer,
    token_ids,
    unknown_id,
    untrained_ids,
)
from models.training.vocabulary import LATER_WORDS, words  # noqa: E402


class TestLatents:
    """Latents are the picture itself, folded."""

    def test_unfold_inverts_fold(self) -> None:
        pictures = torch.rand(2, 3, 32, 48)
        assert torch.equal(unfold(fold(pictures)), pictures)

    @pytest.mark.parametrize("size_px", [(64, 64), (64, 96)])
    def test_handwritten_encoder_is_exact(self, size_px: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(2, 3, *size_px, generator=generator) * 2 - 1
        with torch.no_grad():
            latents = build_autoencoder().encode(pictures).latent_dist.sample(generator)
        assert torch.allclose(latents, fold(pictures), atol=1e-4)

    @pytest.mark.parametrize("shrink", [2, 4])
    def test_encoder_of_larger_pictures_averages_and_folds(self, shrink: int) -> None:
        pictures = torch.rand(1, 3, 32 * shrink, 48 * shrink) * 2 - 1
        with torch.no_grad():
            latents = build_autoencoder(shrink).encode(pictures).latent_dist.mode()
        small = torch.nn.functional.avg_pool2d(pictures, shrink)
        assert torch.allclose(latents, fold(small), atol=1e-4)

    @pytest.mark.parametrize("shrink", [2, 4])
    def test_a_large_drawing_has_nearly_the_latents_of_the_small_one(self, shrink: int) -> None:
        scene = lay_out(Wish((Kind("red", "star"),), "blue"), np.random.default_rng(0))
        small, large = (
            pictures_of([drawn], torch.device("cpu")) for drawn in (scene, enlarged(scene, shrink))
        )
        assert (fold(large, shrink) - fold(small)).abs().mean() < 0.01

    def test_a_larger_decoder_takes_over_the_smaller_and_repeats_its_features(self) -> None:
        trained, larger = build_autoencoder(2).decoder, build_autoencoder(4).decoder
        start_decoder_from(larger, trained)
        features = torch.randn(1, 16, 4, 6)
        with torch.no_grad():
            repeated = larger.up_blocks[3].upsamplers[0](features)
        assert torch.equal(repeated[..., ::2, ::2], features)
        weights = larger.state_dict()
        assert all(torch.equal(weights[n], value) for n, value in trained.state_dict().items())

    def test_a_larger_decoder_can_be_trained(self) -> None:
        stage = DecoderStage(torch.device("cpu"), batch=2, shrink=2)
        before = stage.model.encoder.conv_out.weight.clone()
        losses = [stage.step(0.1, np.random.default_rng(0)) for _ in range(3)]
        assert losses[-1] < losses[0]
        assert torch.equal(stage.smoothed().encoder.conv_out.weight, before)


class TestTokenizer:
    """Known words are one token each; unknown words do no harm."""

    def test_every_word_is_one_token(self) -> None:
        tokenizer = build_tokenizer()
        assert [word for word in words() if len(tokenizer(word).input_ids) != 3] == []

    def test_every_caption_fits(self) -> None:
        tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
        captions = [say(any_wish(rng, Mix(pairs=0.3, styled=0.7)), rng) for _ in range(500)]
        assert max(map(len, tokenizer(captions).input_ids)) <= MAX_TOKENS

    def test_case_does_not_matter(self) -> None:
        lower, upper = token_ids(build_tokenizer(), ["a red circle", "A RED Circle"])
        assert torch.equal(lower, upper)

    def test_unknown_words_become_pieces_that_mean_unknown(self) -> None:
        tokenizer = build_tokenizer()
        strange = set(token_ids(tokenizer, ["qwzx \N{SNOWMAN} 7!"])[0].tolist())
        harmless = {unknown_id(tokenizer), *untrained_ids(tokenizer), *tokenizer.all_special_ids}
        assert strange <= harmless

    def test_reload_keeps_the_tokens(self, tmp_path: Path) -> None:
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(tmp_path)
        again = type(tokenizer).from_pretrained(tmp_path)
        caption = ["a big grey crescent, violet backdrop"]
        assert torch.equal(token_ids(tokenizer, caption), token_ids(again, caption))


class TestGoingOn:
    """A trained model learns more words and keeps the others."""

    def test_old_words_keep_their_ids(self) -> None:
        old = [word for word in words() if word not in LATER_WORDS]
        assert words()[: len(old)] == tuple(sorted(old))

    def test_old_embeddings_stay_and_new_ones_start_near_a_known_one(self) -> None:
        encoder = build_text_encoder(build_tokenizer())
        before = encoder.get_input_embeddings().weight.detach().clone()
        grow_text_encoder(encoder, len(before) + 5, like=2)
        after = encoder.get_input_embeddings().weight.detach()
        assert torch.equal(after[:-5], before)
        assert (after[-5:] - before[2]).abs().max() < 0.2

    def test_it_starts_from_the_weights_of_the_first_training(self) -> None:
        device = torch.device("cpu")
        first = DenoiserStage(device)
        autoencoder = build_autoencoder()
        start = assemble(first.tokenizer, first.text_encoder, first.unet, autoencoder)
        later = DenoiserStage(device, WIDER, start=start, name="wider")
        for own, old in zip(later.unet.parameters(), first.unet.parameters(), strict=True):
            assert torch.equal(own, old)


class TestDevice:
    """One place decides what to train on."""

    @pytest.mark.parametrize("device", ["cuda", "cpu"])
    def test_a_gpu_is_used_when_there_is_one(
        self, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
        assert best_device() == torch.device(device)


class TestMuon:
    """Steps are nearly orthogonal matrices of a fixed size."""

    @pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
    def test_singular_values_come_near_one(self, shape: tuple[int, int]) -> None:
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrix))
        assert values.min() > 0.5
        assert values.max() < 1.35

    def test_finds_the_minimum_of_a_quadratic(self) -> None:
        weight = torch.nn.Parameter(torch.ones(4, 4))
        optimiser = Muon([weight], lr=0.3)
        for step in range(200):
            optimiser.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
            optimiser.zero_grad()
            (weight**2).sum().backward()
            optimiser.step()
        assert weight.abs().max() < 0.05


class Walk:
    """A stage that adds up random numbers: resuming wrongly would change the sum."""

    name = "walk"
    batch = 4

    def __init__(self) -> None:
        self.total = 0.0

    def step(self, progress: float, rng: np.random.Generator) -> float:
        self.total += progress * rng.random()
        return self.total

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


class StoppedError(Exception):
    """Stands for a machine that goes away in the middle of a training."""


class TestResume:
    """A training that was stopped ends where one that was not would have ended."""

    def test_stopped_and_resumed_equals_uninterrupted(self, tmp_path: Path) -> None:
        def stop(position: Position) -> None:
            if position.steps == 20:
                raise StoppedError

        schedule = Schedule(pictures=160, look_every=40)
        straight, broken, resumed = Walk(), Walk(), Walk()
        train(straight, schedule, tmp_path / "straight", lambda _: None)
        with pytest.raises(StoppedError):
            train(broken, schedule, tmp_path / "broken", stop)
        position = train(resumed, schedule, tmp_path / "broken", lambda _: None)
        assert (position.steps, resumed.total) == (40, straight.total)

    def test_nothing_to_resume_starts_anew(self, tmp_path: Path) -> None:
        assert resume(Walk(), tmp_path) == Position()
