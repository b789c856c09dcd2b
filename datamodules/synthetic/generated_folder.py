"""Folders that are generated: complete or not there, and made anew only when their arguments change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datamodules.whole_files import whole_folder
from rewards.errors import UserError

STAMP = "generated.json"
"""In every generated folder: the arguments that it was made with, and the names of its entries."""
_GENERATOR = 3  # part of every stamp: raise it when the same arguments come to give other files


def publish_folder(output: Path, *, arguments: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    """Make `output` a generated folder, complete or not at all.

    A folder made with the same arguments is kept, one made with others is replaced.

    Args:
        output: folder to create.
        arguments: everything that decides the content; must survive JSON.
        build: fills the empty folder that it is given.

    Raises:
        UserError: `output` is a file, or holds something that was not generated here.
    """
    output = output.absolute()
    arguments = json.loads(json.dumps({"generator": _GENERATOR, **arguments}))  # tuples become lists, as in the file
    if output.exists() and _generated_with(output) == arguments:
        return
    with whole_folder(output) as folder:
        build(folder)
        entries = sorted([*(entry.name for entry in folder.iterdir()), STAMP])
        (folder / STAMP).write_text(json.dumps({"arguments": arguments, "entries": entries}, indent=2) + "\n")


def _generated_with(output: Path) -> dict[str, Any] | None:
    """Arguments of a complete generated folder, None if it is empty or lacks entries; refuses foreign files."""
    advice = "choose another folder, or move those files away"
    if not output.is_dir():
        raise UserError(f"{output} is a file; generated files go to a folder: {advice}.")
    present = {entry.name for entry in output.iterdir()}
    stamp = json.loads((output / STAMP).read_text()) if STAMP in present else {}
    entries = set(stamp.get("entries", ()))
    if foreign := present - entries:
        raise UserError(f"{output} holds files that were not generated here ({', '.join(sorted(foreign))}): {advice}.")
    return stamp["arguments"] if entries and entries == present else None
