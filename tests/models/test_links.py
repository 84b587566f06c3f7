"""Folders that share parts through links."""

from __future__ import annotations

import shutil
from pathlib import Path

from models.training.links import link_parts


def folder_with(path: Path, part: str, text: str) -> Path:
    """A folder with one part of one file."""
    (path / part).mkdir(parents=True)
    (path / part / "config.json").write_text(text)
    return path


def test_a_linked_part_is_that_of_the_source(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "shapes", "unet", "one")
    link_parts(tmp_path / "larger", source, ("unet",))
    assert (tmp_path / "larger" / "unet" / "config.json").read_text() == "one"


def test_links_survive_when_both_folders_move(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "here" / "shapes", "unet", "one")
    link_parts(tmp_path / "here" / "larger", source, ("unet",))
    (tmp_path / "here").rename(tmp_path / "there")
    assert (tmp_path / "there" / "larger" / "unet" / "config.json").read_text() == "one"


def test_a_copy_of_the_folder_holds_the_files(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "shapes", "unet", "one")
    link_parts(tmp_path / "larger", source, ("unet",))
    shutil.copytree(tmp_path / "larger", tmp_path / "copy")
    shutil.rmtree(source)
    assert (tmp_path / "copy" / "unet" / "config.json").read_text() == "one"


def test_linking_again_replaces_files_and_links_and_leaves_the_rest(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "shapes", "unet", "new")
    target = folder_with(tmp_path / "larger", "unet", "old")
    folder_with(target, "vae", "own")
    for _ in range(2):
        link_parts(target, source, ("unet",))
    assert (target / "unet" / "config.json").read_text() == "new"
    assert (target / "vae" / "config.json").read_text() == "own"
    assert (source / "unet" / "config.json").read_text() == "new"
