"""Sharing out tensors and attention among the members of a team."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from engine.messages import Seat
from engine.stages.attention import attention_across, ring, ulysses
from engine.stages.groups import Groups, Wire
from engine.stages.team import Crew, Solo, Team, TeamBroke, gather, share, sizes
from tests.support.crew import together

SIZES = (2, 3, 4, 8)


@pytest.mark.parametrize("size", SIZES)
def test_a_tensor_that_is_shared_out_and_gathered_is_the_same_on_every_member(size: int) -> None:
    whole = torch.randn(2, 11, 3)
    parts = together(size, lambda team: share(team, whole, dim=1))
    assert [part.shape[1] for part in parts] == sizes(11, size)
    gathered = together(size, lambda team: gather(team, share(team, whole, 1), 1, total=11))
    assert all(torch.equal(tensor, whole) for tensor in gathered)


def test_a_team_of_one_keeps_the_very_tensor() -> None:
    tensor = torch.randn(4)
    assert share(Solo(), tensor, 0) is tensor
    assert gather(Solo(), tensor, 0, total=4) is tensor


def test_crews_of_one_team_gather_among_themselves() -> None:
    def in_pairs(team: Team) -> list[float]:
        crew = Crew(team, [team.rank // 2 * 2, team.rank // 2 * 2 + 1])
        mine = torch.tensor([float(team.rank)])
        return gather(crew, mine, 0, total=2).tolist()

    assert together(4, in_pairs) == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", [ulysses, ring])
def test_attention_across_a_team_is_that_of_one_device(size: int, way: object) -> None:
    qkv = torch.randn(3, 2, 24, 21, 8)
    expected = functional.scaled_dot_product_attention(*qkv)
    lengths = sizes(21, size)

    def attend(team: Team) -> torch.Tensor:
        mine = share(team, qkv, dim=3)
        return gather(team, way(team, mine, lengths), dim=2, total=21)  # type: ignore[operator]

    for out in together(size, attend):
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [4, 6])
def test_any_model_that_attends_plainly_can_be_shared_out(heads: int) -> None:
    """Text and image are shared out by themselves; six heads do not divide by four."""
    text, image = torch.randn(1, heads, 5, 8), torch.randn(1, heads, 9, 8)

    def model(text: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([text, image], dim=2)
        out = functional.scaled_dot_product_attention(both, both, both, scale=0.2)
        text, image = out.split([text.shape[2], image.shape[2]], dim=2)
        return text, functional.scaled_dot_product_attention(image, image, image)

    def across(team: Team) -> list[torch.Tensor]:
        with attention_across(team, [(5, 9), (9,)]):
            out = model(share(team, text, 2), share(team, image, 2))
        return [gather(team, part, 2, total=n) for part, n in zip(out, (5, 9), strict=True)]

    expected = model(text, image)
    for out in together(4, across):
        for part, whole in zip(out, expected, strict=True):
            torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-5)


def test_masked_attention_is_refused_rather_than_computed_wrongly() -> None:
    qkv, mask = torch.randn(3, 1, 2, 4, 8), torch.ones(4, 4, dtype=torch.bool)

    def masked(team: Team) -> None:
        with attention_across(team, [(8,)]):
            functional.scaled_dot_product_attention(*qkv, attn_mask=mask)

    with pytest.raises(AssertionError, match="attn_mask"):
        together(2, masked)


class TestGroups:
    """Members that meet over real connections, each in a thread of its own."""

    @staticmethod
    def members(folder: Path, size: int) -> list[Groups]:
        return [Groups(folder, torch.device("cpu")) for _ in range(size)]

    def test_members_meet_and_exchange(self, tmp_path: Path) -> None:
        members = self.members(tmp_path, 3)
        for rank, groups in enumerate(members):
            groups.join(Seat("g", rank, 3))

        def meet(twin: Team) -> tuple[list[float], int]:
            team = members[twin.rank].team(Seat("g", twin.rank, 3))
            parts = [torch.full((team.rank + 1,), float(team.rank))] * 3
            received = team.exchange(parts, [(1,), (2,), (3,)])
            return torch.cat(received).tolist(), team.agree(7 + team.rank)

        assert together(3, meet) == [([0, 1, 1, 2, 2, 2], 7)] * 3
        for groups in members:
            groups.leave("g")
        assert list(tmp_path.iterdir()) == []

    def test_who_waits_for_a_member_that_left_fails_at_once(self, tmp_path: Path) -> None:
        members = self.members(tmp_path, 3)

        def work(twin: Team) -> str:
            team = members[twin.rank].team(Seat("g", twin.rank, 3))
            team.agree(0)
            if team.rank == 1:
                members[1].leave("g")
                return "left"
            try:
                team.exchange([torch.zeros(2)] * 3, [(2,)] * 3)
            except TeamBroke:
                members[team.rank].leave("g")
                return "noticed"
            return "missed it"

        assert together(3, work) == ["noticed", "left", "noticed"]

    def test_who_waits_for_a_member_that_never_comes_can_be_told_to_stop(
        self, tmp_path: Path
    ) -> None:
        [groups] = self.members(tmp_path, 1)
        seat = Seat("g", 0, 2)
        groups.join(seat)
        groups.break_up("g")
        with pytest.raises(TeamBroke, match=r"ranks \[1\] did not come"):
            groups.team(seat)

    def test_the_same_devices_meet_again_under_a_new_name(self, tmp_path: Path) -> None:
        members = self.members(tmp_path, 2)

        def meet_twice(twin: Team) -> list[int]:
            answers = []
            for name in ("first", "second"):
                team = members[twin.rank].team(Seat(name, twin.rank, 2))
                answers.append(team.agree(team.rank + len(name)))
                members[twin.rank].leave(name)
            return answers

        assert together(2, meet_twice) == [[5, 6], [5, 6]]


class Log:
    """A process group that notes what it is asked for and does nothing."""

    def __init__(self, name: str, said: list[str]) -> None:
        self._name, self._said = name, said

    def barrier(self) -> Log:
        self._said.append(f"{self._name} barrier")
        return self

    def alltoall_base(self, *_tensors: object) -> Log:
        self._said.append(f"{self._name} exchange")
        return self

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("has_nccl", [True, False])
def test_members_come_together_before_nccl_connects_because_it_waits_ten_seconds_only(
    has_nccl: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    said: list[str] = []
    control = Log("gloo", said)
    data = Log("nccl", said) if has_nccl else control
    wire = Wire(Seat("team", 0, 2), control, data, threading.Event())
    for _ in range(2):
        wire.exchange([torch.zeros(1), torch.zeros(1)], [(1,), (1,)])
    together = ["gloo barrier"] if has_nccl else []
    assert said == [*together, *[f"{'nccl' if has_nccl else 'gloo'} exchange"] * 2]
