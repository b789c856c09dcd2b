"""Files and folders that appear whole or not at all: a program that is stopped half way leaves what was there before.

Everything is written under a temporary name beside its place, `.NAME.PID.partial`, brought to the disk and renamed.
The next write to the same place removes what a killed program left behind, so there may be one writer at a time; with
two, the first to begin fails.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

_PARTIAL = re.compile(r"\..+\.\d+\.partial")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8; missing folders are made."""
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def whole_file(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """An open file that takes its place when the block ends, and is removed when the block raises.

    Args:
        path: file to write or replace (a folder of that name is replaced too, as by `whole_folder`); missing folders
            above it are made.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    _put_back(_former(path), path)
    partial = _free_place(path)
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _take_place(partial, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes its place when the block ends, and is removed when the block raises.

    A folder with content cannot be replaced in one step. The former one is moved to `.NAME.former`, and removed when
    the new one is in place. A program killed between the two steps leaves both under their temporary names; the next
    write puts the former one back first.

    Args:
        path: folder to make or replace (a file of that name is replaced too); missing folders above it are made.
    """
    _put_back(_former(path), path)
    partial = _free_place(path)
    partial.mkdir()
    try:
        yield partial
        for entry in (*partial.rglob("*"), partial):
            if not entry.is_symlink():
                _sync(entry)
    except BaseException:
        _remove(partial)
        raise
    _take_place(partial, path)


def remove_whole(path: Path) -> None:
    """Remove a file or folder; one that is half removed no longer has its name."""
    if os.path.lexists(path):
        partial = _free_place(path)
        path.rename(partial)
        _remove(partial)


def restore_former(folder: Path) -> None:
    """Put former content back where a killed program left nothing in its place; several processes may do so at once."""
    for former in folder.glob(".*.former"):
        _put_back(former, folder / former.name.removeprefix(".").removesuffix(".former"))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed programs left under temporary names, while nothing is written in `folder`."""
    restore_former(folder)
    for entry in (*folder.glob(".*.former"), *folder.glob(".*.partial")):
        if entry.suffix == ".former" or _PARTIAL.fullmatch(entry.name):
            _remove(entry)


def _former(path: Path) -> Path:
    return path.with_name(f".{path.name}.former")


def _take_place(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; where a folder is replaced or replaces, what was there is moved aside first."""
    former = _former(path)
    try:
        if path.is_dir() or (partial.is_dir() and os.path.lexists(path)):
            _remove(former)
            path.rename(former)
        partial.replace(path)
    except BaseException:
        _put_back(former, path)
        _remove(partial)
        raise
    _sync(path.parent)
    _remove(former)


def _free_place(path: Path) -> Path:
    """A temporary name beside `path`; what earlier writers left under such names is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stale = re.compile(rf"\.{re.escape(path.name)}\.\d+\.partial")
    for entry in list(path.parent.iterdir()):
        if stale.fullmatch(entry.name):
            _remove(entry)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _put_back(former: Path, path: Path) -> None:
    if os.path.lexists(former) and not os.path.lexists(path):
        with suppress(FileNotFoundError):  # another process was first
            former.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file's content or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
