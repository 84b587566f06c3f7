"""From the bytes of a profile to a `Profile` that makes sense, or to a sentence that says why not.

Knows the schema and nothing of how profiles are used. Errors name the file, the line and, if it is
JSON at all, the field.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.types import StageKind
from schedulers.errors import ProfileError
from schedulers.profiles.lines import line_of
from schedulers.profiles.schema import (
    SCHEMA,
    Entry,
    ModelProfile,
    Profile,
    Provenance,
    StageProfile,
    upright,
)

_STAGE_FIGURES = ("weight_bytes", "load_host_s", "load_peer_s")
_NODE_FIGURES = (
    *("gpus", "memory_bytes", "reserve_bytes", "change_s"),
    *("host_to_device_bytes_per_s", "peer_bytes_per_s", "network_bytes_per_s"),
)
_EDGE_FIGURES = ("fixed_bytes", "bytes_per_pixel", "within_node_s", "across_node_s")
Problem = tuple[str, str]
"""A field, and what is wrong with it."""

_EDGES = (StageKind.DIFFUSE, StageKind.DECODE)


def decode_profile(content: bytes, file: str) -> Profile:
    """Read a profile; `file` is what errors call it.

    Raises:
        ProfileError: not JSON, of another schema, malformed, or contradicting itself.
    """
    document = _parse(content, file)

    def refusal(field: str, what: str) -> ProfileError:
        line = line_of(content.decode(json.detect_encoding(content)), field)
        return ProfileError(f"{file}: line {line}, field {field or '(top level)'}: {what}.")

    schema = document.get("schema")
    if schema != SCHEMA:
        raise refusal("schema", f"is {schema!r}; this version reads {SCHEMA!r}")
    try:
        profile = msgspec.convert(document, Profile)
    except msgspec.ValidationError as error:
        raise refusal(*_located(document, error)) from error
    for field, what in problems(profile):
        raise refusal(field, what)
    return profile


def _parse(content: bytes, file: str) -> dict[str, Any]:
    try:
        document = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        message = f"{file}: line {error.lineno}, column {error.colno}: no JSON: {error.msg}."
        raise ProfileError(message) from error
    except UnicodeDecodeError as error:
        message = f"{file}: byte {error.start}: no UTF-8 text, so no JSON."
        raise ProfileError(message) from error
    except ValueError as error:
        message = f"{file}: {error}."
        raise ProfileError(message) from error
    if not isinstance(document, dict):
        message = f"{file}: line 1: a profile is a JSON object, not {type(document).__name__}."
        raise ProfileError(message)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, or refuse one that has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        message = f"field {twice}: the same object has it twice"
        raise ValueError(message)
    return found


def _no_number(constant: str) -> float:
    message = f"{constant} is no number of JSON"
    raise ValueError(message)


def _located(document: dict[str, Any], error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the field that is wrong, and what is wrong with it.

    msgspec writes `[...]` for the key of a mapping; the key is the one that fails alone as well.
    """
    what, _, place = str(error).partition(" - at `")
    trail: list[str] = []
    field = ""
    for part in re.findall(r"\[\.\.\.\]|\[\d+\]|\.\w+", place):
        if part != "[...]":
            trail.append(part.strip(".[]"))
            field += part
            continue
        trail.append(_culprit(document, trail, error))
        document = _with_only(document, trail)
        field += f"[{json.dumps(trail[-1])}]"
    return field.lstrip("."), what


def _culprit(document: dict[str, Any], trail: Sequence[str], error: msgspec.ValidationError) -> str:
    mapping = document
    for key in trail:
        mapping = mapping[key]
    keys = list(mapping)
    return next(key for key in keys if _fails(_with_only(document, [*trail, key]), error))


def _with_only(document: dict[str, Any], trail: Sequence[str]) -> dict[str, Any]:
    """Return the document without the siblings of the last key of `trail`."""
    first, *rest = trail
    if not rest:
        return {first: document[first]}
    return {**document, first: _with_only(document[first], rest)}


def _fails(document: dict[str, Any], error: msgspec.ValidationError) -> bool:
    try:
        msgspec.convert(document, Profile)
    except msgspec.ValidationError as same:
        return str(same) == str(error)
    return False


def problems(profile: Profile) -> Iterator[Problem]:
    """Yield what types cannot say: missing stages, figures without provenance, contradictions."""
    yield from _unmarked("node", profile.node.provenance, _NODE_FIGURES)
    if profile.node.reserve_bytes >= profile.node.memory_bytes:
        yield "node.reserve_bytes", "leaves nothing of memory_bytes"
    if not profile.models:
        yield "models", "a profile needs at least one model"
    for name, model in profile.models.items():
        yield from _model_problems(f'models["{name}"]', model, profile.node.gpus)


def _model_problems(path: str, model: ModelProfile, gpus: int) -> Iterator[Problem]:
    yield from _unmarked(path, model.provenance, ("default_steps", "min_degrees"))
    for kind in StageKind:
        if kind not in model.stages:
            yield f"{path}.stages", f"stage {kind.value!r} is missing"
            return
        yield from _stage_problems(f'{path}.stages["{kind.value}"]', kind, model.stages[kind], gpus)
    if set(model.edges) != set(_EDGES):
        yield f"{path}.edges", "must have exactly 'diffuse' and 'decode', the stages with inputs"
    for kind, edge in model.edges.items():
        yield from _unmarked(f'{path}.edges["{kind.value}"]', edge.provenance, _EDGE_FIGURES)
    for index, floor in enumerate(model.min_degrees):
        if floor.degree not in model.degrees:
            known = ", ".join(map(str, model.degrees))
            yield (
                f"{path}.min_degrees[{index}].degree",
                f"{floor.degree} was not profiled ({known})",
            )


def _stage_problems(
    path: str, kind: StageKind, stage: StageProfile, gpus: int
) -> Iterator[Problem]:
    yield from _unmarked(path, stage.provenance, _STAGE_FIGURES)
    singles = {entry.degree for entry in stage.entries if entry.batch == 1}
    if 1 not in singles:
        yield f"{path}.entries", "needs an entry of degree 1 and batch 1"
    sized = {entry.shape is not None for entry in stage.entries}
    if len(sized) > 1 or (kind is not StageKind.ENCODE and sized == {False}):
        yield f"{path}.entries", "give every entry a shape (or none of an encode stage)"
    seen = Counter(_class_of(entry) for entry in stage.entries)
    for index, entry in enumerate(stage.entries):
        here = f"{path}.entries[{index}]"
        if entry.degree > gpus:
            yield f"{here}.degree", f"{entry.degree} is more than the {gpus} devices of a node"
        if entry.degree not in singles:
            yield f"{here}.batch", f"degree {entry.degree} needs entries of batch 1 as well"
        if seen[_class_of(entry)] > 1:
            yield here, "same shape (turned or not), degree and batch as another entry"
        if entry.shape is not None and entry.shape.pixels < 1:
            yield f"{here}.shape", "width, height and frames must be at least 1"


def _class_of(entry: Entry) -> tuple[object, int, int]:
    shape = entry.shape and upright(entry.shape)
    return shape, entry.degree, entry.batch


def _unmarked(
    path: str, provenance: Mapping[str, Provenance], figures: tuple[str, ...]
) -> Iterator[Problem]:
    for name in figures:
        if name not in provenance:
            yield f"{path}.provenance", f"does not say where {name} comes from"
    for name in provenance:
        if name not in figures:
            yield f"{path}.provenance", f"there is no figure {name!r}"
