"""Teach the tokenizer and the text encoder of the stills the words of movement.

New words get new ids after the old ones and known words stay one token each, so everything
learned so far keeps its meaning. Unknown words may fall into other pieces than before; all pieces
mean the unknown word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from transformers import CLIPTokenizer

from models.training.tokens import MAX_TOKENS, unknown_id
from models.training.vocabulary import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPTextModel

_WORD_END = "</w>"
_START_SPREAD = 0.02
"""New embeddings start with this much noise, so that they can part."""
_NEAR: Mapping[str, str] = MappingProxyType(
    {
        "up": "top",
        "down": "bottom",
        "growing": "large",
        "bigger": "big",
        "shrinking": "small",
        "smaller": "small",
        "bouncing": "down",
    }
)
"""Known words near which a new one starts; all others start near the unknown word."""


def extended_tokenizer(tokenizer: CLIPTokenizer, spoken: Sequence[str]) -> CLIPTokenizer:
    """The same tokenizer with every word of stills, and these of motion, as one token."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    merges = dict.fromkeys(tuple(merge) for merge in model["merges"])
    for word in (*words(), *spoken):
        for start in range(len(word) - 2, -1, -1):
            merges[word[start], word[start + 1 :] + _WORD_END] = None
            vocabulary.setdefault(word[start:] + _WORD_END, len(vocabulary))
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        model_max_length=MAX_TOKENS,
    )


@torch.no_grad()
def extend_embeddings(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Grow the table to the tokenizer's size; new rows start near known words."""
    known = text_encoder.get_input_embeddings().num_embeddings
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    noise = torch.empty_like(table[known:]).normal_(std=_START_SPREAD)
    table[known:] = table[unknown_id(tokenizer)] + noise
    for word, near in _NEAR.items():
        new, old = (tokenizer.convert_tokens_to_ids(w + _WORD_END) for w in (word, near))
        if new >= known:
            table[new] += table[old] - table[unknown_id(tokenizer)]


def untaught_ids(tokenizer: CLIPTokenizer, known: int, spoken: Sequence[str]) -> list[int]:
    """Pieces of the new words, with ids from `known` on, that no caption of ours leaves behind."""
    whole = {word + _WORD_END for word in (*words(), *spoken)}
    pieces = tokenizer.get_vocab().items()
    return [index for token, index in pieces if index >= known and token not in whole]
