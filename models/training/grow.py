"""Teach a trained text encoder more words: rows at the end of its table, so that old ids stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import CLIPTextModel

_START_SPREAD = 0.02
"""New embeddings start with this much noise, so that they can part."""


@torch.no_grad()
def grow_text_encoder(text_encoder: CLIPTextModel, words: int, like: int) -> None:
    """Grow the table to so many words; new rows start near the row `like`."""
    known = text_encoder.get_input_embeddings().num_embeddings
    text_encoder.resize_token_embeddings(words, mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    noise = torch.empty_like(table[known:]).normal_(std=_START_SPREAD)
    table[known:] = table[like] + noise
