"""Where a media file may lie: below the data root, and a regular file. Asks the disk, so the reader process does it."""

from __future__ import annotations

from pathlib import Path

from datamodules.video.types import MediaPathError


def media_place(path: str, root: str | Path) -> Path:
    """The file at `path` below the data root, with symbolic links resolved.

    Raises:
        MediaPathError: nothing is there, it is no regular file, or a link leads out of the data root or in a circle.
    """
    root = Path(root).resolve()
    try:
        place = (root / path).resolve()
        regular, present = place.is_file(), place.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name too long or that no disk can hold
        raise MediaPathError(f"path {path!r} cannot be looked up below the data root {root} ({error}).") from error
    if not place.is_relative_to(root):
        raise MediaPathError(
            f"path {path!r} leads through a symbolic link to {place}, outside the data root {root}. Media must lie "
            "below the data root: move them there, or set data_root to a folder above both."
        )
    if not regular:
        found = "is no regular file" if present else "does not exist"
        raise MediaPathError(
            f"media file {place} {found} (path {path!r}, data root {root}). "
            "Set data_root to the folder that the paths are relative to, or fetch the missing file."
        )
    return place
