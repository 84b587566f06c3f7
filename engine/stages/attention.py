"""Attention over a sequence that is shared out among a team: Ulysses, or a ring of keys and values.

Transformers of tokens (MM-DiT) work token by token but for their attention. So each member runs
the whole model on its share of the tokens, and here, where queries meet keys, the team meets. The
call is caught under the model with torch's function mode: it needs no processor of any family's,
changes no weights, and is gone when the context ends.

Ulysses exchanges tokens for heads and back, and so needs heads that divide by the team; it does the
same sums as one device. Else keys and values go round the ring and the parts are merged by their
log-sum-exp (Liu et al., Ring Attention, 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from engine.stages.team import Team, resized, sizes

_SEQUENCE = 2  # of (B, heads, tokens, D)


@contextmanager
def attention_across(team: Team, streams: Sequence[Sequence[int]]) -> Iterator[None]:
    """Let every attention inside go across the team.

    `streams` are the sizes of the streams of tokens that attend together, for each kind of
    attention in the model: `[(text, image)]` for joint attention, with `(image,)` besides where
    the image also attends to itself. Each stream is shared out by itself.
    """
    if team.size == 1:
        yield
        return
    lengths = [
        [sum(parts) for parts in zip(*(sizes(n, team.size) for n in kind), strict=True)]
        for kind in streams
    ]
    with _Across(team, lengths):
        yield


class _Across(TorchFunctionMode):
    """Replaces the attention of this member's tokens by that of the whole sequence."""

    def __init__(self, team: Team, lengths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._team, self._lengths = team, lengths

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        scale = options.pop("scale", None)
        extras = [name for name, option in options.items() if option not in {None, False}]
        assert not extras, f"attention with {extras} cannot be shared out"
        mine = query.shape[_SEQUENCE]
        lengths = next(kind for kind in self._lengths if kind[self._team.rank] == mine)
        attend = ring if query.shape[1] % self._team.size else ulysses
        return attend(self._team, torch.stack([query, key, value]), lengths, scale)


def ulysses(team: Team, qkv: Tensor, lengths: Sequence[int], scale: float | None = None) -> Tensor:
    """Return this member's rows of the attention, (B, heads, own tokens, D).

    `qkv` (3, B, heads, own tokens, D) are those of its own tokens; `lengths` are all members'.
    """
    heads = qkv.shape[2] // team.size
    received = team.exchange(
        qkv.chunk(team.size, dim=2),
        [resized(resized(qkv.shape, 2, heads), 3, length) for length in lengths],
    )
    query, key, value = torch.cat(received, dim=3)  # (3, B, heads / size, all tokens, D)
    out = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    mine = resized(out.shape, _SEQUENCE, lengths[team.rank])
    return torch.cat(team.exchange(out.split(list(lengths), _SEQUENCE), [mine] * team.size), dim=1)


def ring(team: Team, qkv: Tensor, lengths: Sequence[int], scale: float | None = None) -> Tensor:
    """Return the same as `ulysses`, for any number of heads."""
    query, pair = qkv[0], qkv[1:]
    out, lse = _attend_with_lse(query, pair[0], pair[1], scale)
    for turn in range(1, team.size):
        origin = (team.rank - turn) % team.size
        pair = _pass_on(team, pair, resized(pair.shape, 3, lengths[origin]))
        more, more_lse = _attend_with_lse(query, pair[0], pair[1], scale)
        weight = torch.sigmoid(more_lse - lse)  # the share of the new part in the sum of both
        out, lse = torch.lerp(out, more, weight), torch.logaddexp(lse, more_lse)
    return out.to(query.dtype)


def _pass_on(team: Team, pair: Tensor, shape: Sequence[int]) -> Tensor:
    """Send keys and values to the next member, and return those of the one before."""
    before, after = (team.rank - 1) % team.size, (team.rank + 1) % team.size
    nothing = pair.new_empty(0)
    parts = [pair if rank == after else nothing for rank in range(team.size)]
    shapes = [shape if rank == before else (0,) for rank in range(team.size)]
    return team.exchange(parts, shapes)[before]


def _attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Return attention and its log-sum-exp (B, heads, tokens, 1), both in float32."""
    if query.device.type == "cpu":
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    else:
        attend = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001
    out, lse = attend(query, key, value, scale=scale)[:2]
    return out.float(), lse.float().unsqueeze(-1)
