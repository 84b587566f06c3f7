"""A profile that cannot be used is refused with the file, the place in it and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schedulers.errors import SchedulerError
from schedulers.profile import ProfileError, load_profile
from schedulers.profiles.sourcing import SOURCES

Document = dict[str, Any]
GOOD = (SOURCES.parent / "l20.json").read_text()


def refused(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert isinstance(caught.value, SchedulerError)
    return str(caught.value).removeprefix(f"{path}: ")


def stage(document: Document, kind: str = "diffuse") -> Document:
    found: Document = document["models"]["flux1"]["stages"][kind]
    return found


def test_a_profile_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(GOOD.replace('"name": "l20"', '"name": "mine"'))
    assert load_profile(str(path)).name == "mine"


def test_a_missing_file_is_told_with_the_names_that_ship(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"l21.*No such file.*profiles that ship: l20, h100"):
        load_profile(str(tmp_path / "l21"))


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    lines[9] = lines[9].rstrip(",") + ";"
    assert refused(tmp_path, "\n".join(lines)).startswith("line 10, column ")


def test_bytes_that_are_no_text_are_told_with_their_place(tmp_path: Path) -> None:
    assert refused(tmp_path, b'{"name": "\xff"}') == "byte 10: no UTF-8 text, so no JSON."


def test_a_list_is_no_profile(tmp_path: Path) -> None:
    assert refused(tmp_path, "[]") == "line 1: a profile is a JSON object, not list."


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    twice = GOOD.replace('"load_host_s"', '"load_host_s": 1, "load_host_s"', 1)
    assert refused(tmp_path, twice) == "field load_host_s: the same object has it twice."


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1e999"])
def test_a_figure_is_a_number_from_nought(tmp_path: Path, number: str) -> None:
    message = refused(tmp_path, GOOD.replace('"change_s": 0.03', f'"change_s": {number}'))
    assert number in message or "change_s" in message


def test_a_later_schema_is_told_apart_from_a_mistake(tmp_path: Path) -> None:
    later = GOOD.replace("profile/1", "profile/2")
    assert refused(tmp_path, later) == (
        "line 2, field schema: is 'tridentserve.profile/2'; "
        "this version reads 'tridentserve.profile/1'."
    )


def drop_decode(document: Document) -> None:
    del document["models"]["flux1"]["stages"]["decode"]


def drop_edge(document: Document) -> None:
    del document["models"]["flux1"]["edges"]["decode"]


def misname_stage(document: Document) -> None:
    stages = document["models"]["flux1"]["stages"]
    stages["denoise"] = stages.pop("diffuse")


def text_for_number(document: Document) -> None:
    stage(document)["entries"][2]["degree"] = "4"


def no_time(document: Document) -> None:
    stage(document)["entries"][0]["duration_s"] = 0


def misspelt(document: Document) -> None:
    stage(document)["weigth_bytes"] = 1


def unknown_provenance(document: Document) -> None:
    stage(document)["provenance"]["load_host_s"] = "guessed"


def unmarked(document: Document) -> None:
    del stage(document)["provenance"]["load_host_s"]


def marks_nothing(document: Document) -> None:
    document["node"]["provenance"]["colour"] = "assumed"


def same_class_twice(document: Document) -> None:
    entries = stage(document)["entries"]
    entries[1]["degree"] = 1


def no_single_device(document: Document) -> None:
    entries = stage(document, "decode")["entries"]
    for entry in entries:
        entry["degree"] = 2


def only_batches(document: Document) -> None:
    stage(document)["entries"][3]["batch"] = 2
    for entry in stage(document)["entries"][7::4]:
        entry["batch"] = 2


def wider_than_a_node(document: Document) -> None:
    stage(document)["entries"][3]["degree"] = 16


def shapeless(document: Document) -> None:
    stage(document)["entries"][3]["shape"] = None


def flat_shape(document: Document) -> None:
    stage(document)["entries"][3]["shape"]["width_px"] = 0


def unprofiled_floor(document: Document) -> None:
    document["models"]["flux1"]["min_degrees"][0]["degree"] = 3


def all_reserved(document: Document) -> None:
    document["node"]["reserve_bytes"] = document["node"]["memory_bytes"]


def no_models(document: Document) -> None:
    document["models"] = {}


def no_object(document: Document) -> None:
    document["models"]['a "b"'] = 3


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (drop_decode, "models[\"flux1\"].stages: stage 'decode' is missing"),
        (drop_edge, 'models["flux1"].edges: must have exactly'),
        (misname_stage, "models[\"flux1\"].stages: Invalid enum value 'denoise'"),
        (text_for_number, '["diffuse"].entries[2].degree: Expected `int`, got `str`'),
        (no_time, 'models["flux1"].stages["diffuse"].entries[0].duration_s: Expected `float` > 0'),
        (misspelt, 'models["flux1"].stages["diffuse"]: Object contains unknown field `weigth'),
        (unknown_provenance, '.provenance["load_host_s"]: Invalid enum value'),
        (unmarked, '.stages["diffuse"].provenance: does not say where load_host_s comes from'),
        (marks_nothing, "node.provenance: there is no figure 'colour'"),
        (same_class_twice, '["diffuse"].entries[0]: same shape (turned or not), degree and batch'),
        (no_single_device, '["decode"].entries: needs an entry of degree 1 and batch 1'),
        (only_batches, "entries[3].batch: degree 8 needs entries of batch 1 as well"),
        (wider_than_a_node, "entries[3].degree: 16 is more than the 8 devices of a node"),
        (shapeless, '["diffuse"].entries: give every entry a shape'),
        (flat_shape, "entries[3].shape: width, height and frames must be at least 1"),
        (unprofiled_floor, "min_degrees[0].degree: 3 was not profiled (1, 2, 4, 8)"),
        (all_reserved, "node.reserve_bytes: leaves nothing of memory_bytes"),
        (no_models, "models: a profile needs at least one model"),
        (no_object, r'models["a \"b\""]: Expected `object`, got `int`'),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, spoil: Callable[[Document], None], told: str
) -> None:
    document = json.loads(GOOD)
    spoil(document)
    message = refused(tmp_path, json.dumps(document))
    assert message.startswith("line 1, field ")
    assert told in message


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (text_for_number, '"degree": "4",'),
        (unknown_provenance, '"load_host_s": "guessed",'),
        (flat_shape, '"shape": {'),  # what is wrong is a value further in
        (drop_decode, '"stages": {'),  # what is wrong is not there
        (all_reserved, '"reserve_bytes": 48000000000,'),
        (no_object, r'"a \"b\"": 3'),
    ],
)
def test_the_line_of_a_wrong_field_is_named(
    tmp_path: Path, spoil: Callable[[Document], None], line: str
) -> None:
    document = json.loads(GOOD)
    spoil(document)
    content = json.dumps(document, indent=1)
    number = int(refused(tmp_path, content).removeprefix("line ").partition(",")[0])
    assert content.splitlines()[number - 1].strip() == line


def test_lines_are_found_in_any_encoding_that_json_may_have(tmp_path: Path) -> None:
    content = GOOD.replace("profile/1", "profile/2").encode("utf-16")
    assert refused(tmp_path, content).startswith("line 2, field schema: ")
