"""A word-level tokenizer in the stock `CLIPTokenizer` class, built from the closed vocabulary.

Byte-pair merges run from the end of each word ("r</w>", "ar</w>", "tar</w>", "star</w>"), so at
most one merge ever applies and every known word becomes one token. What is left of an unknown word
are pieces; they never train, and `unknown_ids` lets the exporter give all of them the embedding of
the unknown token, so no prompt can crash or surprise the model.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from transformers import CLIPTokenizer

from models.training.vocabulary import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

MAX_TOKENS = 24
_START, _END, _UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
_WORD_END = "</w>"


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the shapes model; lower case, 24 tokens, unknown words allowed."""
    vocabulary = {_START: 0, _END: 1, _UNKNOWN: 2}
    for letter in string.ascii_lowercase + string.digits + ",.-":
        vocabulary.setdefault(letter, len(vocabulary))
        vocabulary.setdefault(letter + _WORD_END, len(vocabulary))
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        for start in range(len(word) - 2, -1, -1):
            merges[word[start], word[start + 1 :] + _WORD_END] = None
            vocabulary.setdefault(word[start:] + _WORD_END, len(vocabulary))
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=MAX_TOKENS,
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Captions as a (B, 24) batch of ids, padded and cut as the pipeline does it."""
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def unknown_id(tokenizer: CLIPTokenizer) -> int:
    """The one unknown token that is trained."""
    return int(tokenizer.convert_tokens_to_ids(_UNKNOWN))


def untrained_ids(tokenizer: CLIPTokenizer) -> list[int]:
    """Pieces that only unknown words leave behind."""
    known = {word + _WORD_END for word in words()} | {_START, _END, _UNKNOWN}
    return [index for token, index in tokenizer.get_vocab().items() if token not in known]
