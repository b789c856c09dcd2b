"""Folders that are generated: complete or not there, and made anew only when their arguments change."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_GENERATOR = 2  # part of every manifest: raise it when the same arguments come to give other files


def publish_folder(output: Path, *, arguments: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    """Make `output` a generated folder, complete or not at all.

    The content is built in a temporary sibling that is then renamed. A manifest inside records the arguments
    and the top-level entries: the same arguments make the call do nothing, others make it replace the folder.

    Args:
        output: folder to create.
        arguments: everything that decides the content; must survive JSON.
        build: fills the empty folder that it is given.

    Raises:
        ValueError: `output` is a file, or holds something that was not generated here.
    """
    output = output.absolute()
    arguments = json.loads(json.dumps({"generator": _GENERATOR, **arguments}))  # tuples become lists, as in the file
    if output.exists() and _generated_with(output) == arguments:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as staging:
        fresh = Path(staging) / "fresh"
        fresh.mkdir()
        build(fresh)
        entries = sorted([entry.name for entry in fresh.iterdir()] + [MANIFEST])
        manifest = {"arguments": arguments, "entries": entries}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if output.exists():
            output.rename(Path(staging) / "stale")
        fresh.rename(output)


def _generated_with(output: Path) -> dict[str, Any] | None:
    """Arguments of a complete generated folder, None if it is empty or lacks entries; refuses foreign files."""
    mend = "choose another folder, or move those files away"
    if not output.is_dir():
        raise ValueError(f"{output} is a file; generated files go to a folder: {mend}.")
    present = {entry.name for entry in output.iterdir()}
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8")) if MANIFEST in present else {}
    entries = set(manifest.get("entries", ()))
    if foreign := present - entries:
        raise ValueError(f"{output} holds files that were not generated here ({', '.join(sorted(foreign))}): {mend}.")
    return manifest["arguments"] if entries and entries == present else None
