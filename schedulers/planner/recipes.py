"""Recipes: how many devices of which role a cluster could consist of.

Ours proposes several and lets the objective choose: models together or apart, decode pools or
none, pools exact or in whole blocks; if memory or devices are short, stages that are swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from engine.types import ModelId, StageKey, StageKind
from schedulers.planner.crews import Crew, crews_of, groupings, of_model
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.packing import Recipe, Share
from schedulers.planner.replicas import Memory, Role, Wanted
from schedulers.planner.split import apportioned, in_blocks, pool_sizes

E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE


class Means(msgspec.Struct, frozen=True):
    """What there is to plan with."""

    memory: Memory
    devices: int
    knobs: PlannerKnobs


class Pool(msgspec.Struct, frozen=True):
    """Auxiliary devices of one role, as many as its work takes."""

    role: Role
    kind: StageKind
    devices: int


def proposals(classes: Sequence[Wanted], means: Means, videos: frozenset[ModelId]) -> list[Recipe]:
    """Return recipes without swapping, the most natural first, each only once."""
    pooled = frozenset(
        m for m in videos if _withdraws(of_model(classes, m)) > means.knobs.pool_share
    )
    found: dict[tuple[tuple[Share, ...], tuple[Share, ...]], Recipe] = {}
    none = frozenset[ModelId]()
    for choice, apart in dict.fromkeys(((pooled, pooled), (pooled, none), (none, none))):
        for groups in groupings(classes, means.memory, apart):
            crews = [crew for group in groups for crew in crews_of(classes, group, apart)]
            for recipe in _rounded(crews, classes, means, choice):
                found.setdefault((recipe.primaries, recipe.pools), recipe)
    return list(found.values())


def swapping(classes: Sequence[Wanted], means: Means) -> list[Recipe]:
    """Return recipes for clusters that are too small: stages that evict each other.

    First the pools' stages stowed on the primaries; last, everything everywhere, under which each
    class that fits anywhere can be served.
    """
    everything = frozenset(item.load.stage(kind) for item in classes for kind in StageKind)
    width = max((item.need.degree for item in classes), default=1)
    last = Recipe(
        "all stages swapped on all devices",
        (Share(everything, means.devices, width),),
        swapped=frozenset({everything}),
    )
    stowed: list[Recipe] = []
    for groups in groupings(classes, means.memory, frozenset()):
        crews = [crew for group in groups for crew in crews_of(classes, group, frozenset())]
        shares = _shares(crews, means.devices)
        if shares is not None:
            pools = _pools(crews, classes, means, frozenset())
            mixed = _stow(shares, pools)
            new = {share.role for share in mixed} - {share.role for share in shares}
            name = "auxiliaries swapped on primaries"
            stowed.append(Recipe(name, mixed, swapped=frozenset(new)))
    return [*stowed, last]


def _withdraws(items: Sequence[Wanted]) -> float:
    """Return the share of the work's devices that decodes on primaries keep from the widest class.

    A decode takes one device of a team, but a wide class needs the whole block, so each second of
    decode withdraws up to a block. (As it is, decode is only 5 % of the work even of the public
    CogVideoX trace, where a pool is the largest single gain; for images this stays near 2 %.)
    """
    asked = [item for item in items if item.load.rate_per_s > 0]
    decode = sum(item.work_of(C) for item in asked)
    work = decode + sum(item.work + item.work_of(E) for item in asked)
    return decode * max(item.need.degree for item in asked) / work if work > 0 else 0.0


def _pools(
    crews: Sequence[Crew],
    classes: Sequence[Wanted],
    means: Means,
    pooled: frozenset[ModelId],
) -> list[Pool]:
    """Return the pools that these crews need, sized by the work that comes to them."""
    pools: list[Pool] = []
    apart: dict[StageKind, list[Wanted]] = {
        kind: [
            item
            for crew in crews
            for item in crew.items
            if item.load.stage(kind) not in crew.role or (kind is C and item.load.model in pooled)
        ]
        for kind in (E, C)
    }
    work = {kind: sum(item.work_of(kind) for item in items) for kind, items in apart.items()}
    sizes = pool_sizes(
        total=means.devices,
        diffuse=sum(item.work for item in classes),
        encode=work[E],
        decode=work[C],
        headroom=(means.knobs.encode_headroom, means.knobs.decode_headroom),
    )
    for kind, total in ((C, sizes.decode), (E, sizes.encode)):
        roles = _pool_roles(apart[kind], kind, means.memory)
        amounts = [
            sum(item.work_of(kind) for item in apart[kind] if item.load.stage(kind) in role)
            for role in roles
        ]
        counts = apportioned(max(total, len(roles)), amounts, [1] * len(roles)) if roles else []
        pools += [Pool(role, kind, n) for role, n in zip(roles, counts or (), strict=True)]
    return pools


def _pool_roles(items: Sequence[Wanted], kind: StageKind, memory: Memory) -> list[Role]:
    """Return one role for all models' stages of a kind if they fit together, else one each."""
    stages = sorted({item.load.stage(kind) for item in items})
    peak = max((item.load.bytes_of(kind, 1) for item in items), default=0)
    shared = frozenset(stages)
    if memory.of(shared) + peak <= memory.capacity_bytes:
        return [shared] if shared else []
    return [frozenset({stage}) for stage in stages]


def _rounded(
    crews: Sequence[Crew],
    classes: Sequence[Wanted],
    means: Means,
    pooled: frozenset[ModelId],
) -> Iterator[Recipe]:
    """Yield recipes with pools as they are and rounded to whole blocks of the widest class."""
    pools = _pools(crews, classes, means, pooled)
    width = max((item.need.degree for item in classes), default=1)
    exact = sum(pool.devices for pool in pools)
    for name, total in (
        ("pools in whole blocks", exact // width * width),
        ("pools as their demand asks", exact),
        ("pools filled up to whole blocks", -(-exact // width) * width),
    ):
        sized = _resized(pools, total - exact, classes, means.knobs)
        if sized is None or (name != "pools as their demand asks" and total == exact):
            continue
        shares = _shares(crews, means.devices - sum(pool.devices for pool in sized))
        if shares is not None:
            aux = tuple(Share(pool.role, pool.devices) for pool in sized)
            yield Recipe(name if pools else "no pools", shares, aux)


def _resized(
    pools: Sequence[Pool], extra: int, classes: Sequence[Wanted], knobs: PlannerKnobs
) -> list[Pool] | None:
    """Return the pools with `extra` devices more (or fewer) in the largest decode pool.

    None if there is none, or if fewer devices would leave it too busy for its demand.
    """
    if extra == 0:
        return list(pools)
    decoders = [pool for pool in pools if pool.kind is C]
    if not decoders:
        return None
    chosen = max(decoders, key=lambda pool: pool.devices)
    size = chosen.devices + extra
    work = sum(item.work_of(C) for item in classes if item.load.stage(C) in chosen.role)
    if size < 1 or (extra < 0 and work > knobs.pool_limit * size):
        return None
    return [Pool(p.role, p.kind, size) if p is chosen else p for p in pools]


def _shares(crews: Sequence[Crew], devices: int) -> tuple[Share, ...] | None:
    """Share primaries between crews by work, each in blocks; None if there are too few."""
    if not crews:
        return None
    widths = [crew.width for crew in crews]
    counts = apportioned(devices, [crew.work for crew in crews], widths)
    if counts is None:
        return None
    counts = in_blocks(counts, widths, widths)
    return tuple(
        Share(crew.role, count, crew.width) for crew, count in zip(crews, counts, strict=True)
    )


def _stow(shares: Sequence[Share], pools: Sequence[Pool]) -> tuple[Share, ...]:
    """Return the shares with the pools' stages added to all primaries of the same models.

    All, because a request can begin on any idle device then. On a few of them it would queue
    behind what runs there: a minute on a wide video (five-phase HunyuanVideo on 8 GPUs).
    """
    stages = frozenset(stage for pool in pools for stage in pool.role)

    def added(share: Share) -> Role:
        return frozenset(s for s in stages if StageKey(s.model, D) in share.role)

    return tuple(Share(s.role | added(s), s.devices, s.width) for s in shares)
