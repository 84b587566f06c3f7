"""The inflated UNet starts as the UNet of the stills; new words leave old ones alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import UNetMotionModel  # noqa: E402

from models.training.denoiser import build_text_encoder, build_unet  # noqa: E402
from models.training.motion.movements import ClipWish, lay_out_clip  # noqa: E402
from models.training.motion.network import inflate, lengthened  # noqa: E402
from models.training.motion.phrases import motion_words  # noqa: E402
from models.training.motion.stage import (  # noqa: E402
    LONG_FRAMES,
    MIDDLE_FRAMES,
    MotionStage,
    latents_of,
    mixed_lengths,
)
from models.training.motion.words import (  # noqa: E402
    extend_embeddings,
    extended_tokenizer,
    untaught_ids,
)
from models.training.painting import draw  # noqa: E402
from models.training.scenes import Kind, Wish  # noqa: E402
from models.training.tokens import build_tokenizer  # noqa: E402
from models.training.vocabulary import words  # noqa: E402


@pytest.fixture(scope="module")
def first_part() -> MotionStage:
    """The first part, on stills that know nothing yet."""
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(tokenizer)
    stills = SimpleNamespace(unet=build_unet(), tokenizer=tokenizer, text_encoder=text_encoder)
    return MotionStage(stills, torch.device("cpu"))


@pytest.fixture(scope="module")
def second_part(first_part: MotionStage) -> MotionStage:
    """The second part, on what the first part begins with."""
    unet, text_encoder = first_part.smoothed()
    clips = SimpleNamespace(unet=unet, tokenizer=first_part.tokenizer, text_encoder=text_encoder)
    return MotionStage(clips, torch.device("cpu"), name="longer")


class TestWords:
    """The tokenizer and the embeddings."""

    def test_old_words_keep_their_ids(self) -> None:
        old, new = build_tokenizer(), extended_tokenizer(build_tokenizer(), motion_words())
        for word in words():
            assert new(word).input_ids == old(word).input_ids, word

    def test_every_motion_word_is_one_token(self) -> None:
        new = extended_tokenizer(build_tokenizer(), motion_words())
        assert [new.tokenize(word) for word in motion_words()] == [
            [f"{word}</w>"] for word in motion_words()
        ]

    def test_old_embeddings_stay(self) -> None:
        old = build_tokenizer()
        new = extended_tokenizer(old, motion_words())
        encoder = build_text_encoder(old).eval()
        before = encoder.get_input_embeddings().weight.detach().clone()
        extend_embeddings(encoder, new)
        after = encoder.get_input_embeddings().weight.detach()
        assert torch.equal(after[: len(old)], before)
        assert len(after) == len(new) > len(old)

    def test_taught_words_are_not_among_the_untaught(self) -> None:
        old = build_tokenizer()
        new = extended_tokenizer(old, motion_words())
        untaught = untaught_ids(new, len(old), motion_words())
        assert untaught
        assert not {new.convert_tokens_to_ids(f"{w}</w>") for w in motion_words()} & set(untaught)


class TestNetwork:
    """What the motion modules do before and after training."""

    def test_it_starts_by_drawing_every_frame_alone(self) -> None:
        torch.manual_seed(0)
        stills = build_unet().eval()
        torch.nn.init.normal_(stills.conv_out.weight, std=0.1)
        moving = inflate(stills).eval()
        noisy, text = torch.randn(2, 48, 3, 16, 16), torch.randn(2, 24, 128).repeat_interleave(3, 0)
        level = torch.tensor([500.0, 200.0])
        with torch.no_grad():
            clip = moving(noisy, level, text, return_dict=False)[0]
            frames = noisy.transpose(1, 2).flatten(0, 1)
            alone = stills(frames, level.repeat_interleave(3), text, return_dict=False)[0]
        together = clip.transpose(1, 2).flatten(0, 1)
        assert torch.allclose(together, alone, atol=1e-5)

    def test_a_longer_table_of_positions_changes_no_clip(self) -> None:
        torch.manual_seed(0)
        config = inflate(build_unet()).config
        short = UNetMotionModel.from_config({**config, "motion_max_seq_length": 9})
        long = lengthened(short)
        assert long.config.motion_max_seq_length >= 33
        noisy, text = torch.randn(1, 48, 9, 16, 16), torch.randn(9, 24, 128)
        with torch.no_grad():
            clips = [m.eval()(noisy, 500, text, return_dict=False)[0] for m in (short, long)]
        assert torch.allclose(*clips, atol=1e-5)

    def test_frames_can_learn_from_each_other(self) -> None:
        torch.manual_seed(0)
        moving = inflate(build_unet())
        torch.nn.init.normal_(moving.conv_out.weight, std=0.1)
        noisy = torch.randn(1, 48, 3, 16, 16)
        moving(noisy, 500, torch.randn(3, 24, 128), return_dict=False)[0].square().mean().backward()
        gates = [
            parameter.grad.abs().sum()
            for name, parameter in moving.named_parameters()
            if name.endswith("motion_modules.0.proj_out.weight")
        ]
        assert len(gates) == 5
        assert all(gate > 0 for gate in gates)

    def test_latents_hold_the_frames_in_order(self) -> None:
        generator = np.random.default_rng(0)
        scenes = lay_out_clip(ClipWish(Wish((Kind("red", "star"),), "blue"), "left"), generator)
        latents = latents_of([scenes, scenes[::-1]], torch.device("cpu"))
        assert latents.shape == (2, 48, 9, 16, 16)
        assert torch.equal(latents[0], latents[1].flip(1))
        corner = torch.from_numpy(draw(scenes[3])[0, 0])
        assert torch.allclose(latents[0, :3, 3, 0, 0], corner)


class TestStage:
    """The two parts of the training: what they say, and what their batches hold."""

    def test_the_second_part_teaches_bouncing_from_down_on(
        self, first_part: MotionStage, second_part: MotionStage
    ) -> None:
        assert len(first_part.tokenizer.tokenize("bouncing")) > 1
        assert second_part.tokenizer.tokenize("bouncing") == ["bouncing</w>"]
        ids = second_part.tokenizer.convert_tokens_to_ids(["bouncing</w>", "down</w>"])
        bouncing, down = second_part.text_encoder.get_input_embeddings().weight[ids]
        assert (bouncing - down).abs().max() < 0.2

    def test_a_batch_of_the_second_part_mixes_lengths(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(100):
            lengths = sorted(mixed_lengths(4, rng))
            assert lengths[:2] == [9, 9]
            assert MIDDLE_FRAMES[0] <= lengths[2] <= MIDDLE_FRAMES[1]
            assert LONG_FRAMES[0] <= lengths[3] <= LONG_FRAMES[1]

    def test_a_step_follows_clips_of_all_lengths_at_once(
        self, second_part: MotionStage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lengths, moved = [], []
        denoise = second_part.unet.forward
        before = second_part.unet.conv_out.weight.detach().clone()

        def watched(noisy: torch.Tensor, *rest: torch.Tensor, **options: bool) -> tuple[Any, ...]:
            lengths.extend([noisy.shape[2]] * len(noisy))
            moved.append(not torch.equal(second_part.unet.conv_out.weight, before))
            return denoise(noisy, *rest, **options)

        monkeypatch.setattr(second_part.unet, "forward", watched)
        assert second_part.step(0.5, np.random.default_rng(0)) > 0
        assert sorted(lengths)[:2] == [9, 9]
        assert len(set(lengths)) == len(moved) == 3
        assert not any(moved)
        assert not torch.equal(second_part.unet.conv_out.weight, before)
