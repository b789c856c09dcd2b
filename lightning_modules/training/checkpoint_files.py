"""Checkpoints that are whole or not there, and a look at those of earlier starts before one is resumed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint import FileSystemReader

from datamodules.whole_files import remove_whole, whole_file

CONTENT_LIMIT = 16 * 2**30
"""Bytes of a checkpoint up to which its content is compared with its checksums before a resume; of a larger one, only
that every part is there in its full length. Every process looks, so all of them have to come to the same answer."""

_REST = "meta.pt"
"""What a folder holds beside the shards: counts, random numbers, schedules."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, brings it to the disk and renames it; removes it in one step as well.

    A kill at any moment leaves the former checkpoint or the new one. Lightning's own writes to the folder for temporary
    files and moves the result, which on another file system is a copy with half a file in between.

    On the command line every run has it, and FSDP2Strategy has it anywhere; in Python it is
    `Trainer(plugins=[WholeCheckpoints()])`. Addresses such as s3:// are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(Path(path), "wb") as file:
            torch.save(checkpoint, file)

    def remove_checkpoint(self, path: str | Path) -> None:
        if "://" in str(path):
            super().remove_checkpoint(path)
        else:
            remove_whole(Path(path))


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be resumed; the message says why."""


def read_state(path: Path) -> dict[str, Any]:
    """What a sound checkpoint, file or folder, holds beside weights and optimizer states.

    Raises:
        DamagedCheckpointError: it is cut off, lacks a part or has other content than was written, or it holds weights
            alone.
    """
    try:
        state = _read_folder(path) if path.is_dir() else _read_file(path)
    except (OSError, EOFError, UnpicklingError, RuntimeError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise DamagedCheckpointError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if "lr_schedulers" not in state:
        raise DamagedCheckpointError("it holds weights without the state of the training")
    return {name: value for name, value in state.items() if name not in ("state_dict", "optimizer_states")}


def written_at(path: Path) -> float:
    """When a checkpoint was written, in seconds since 1970."""
    rest = path / _REST  # a folder's own time is that of its last entry, also of one removed
    return (rest if rest.exists() else path).stat().st_mtime


def _read_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        _check_archive(file, "the file", content=path.stat().st_size <= CONTENT_LIMIT)
    return torch.load(path, mmap=True, map_location="cpu", weights_only=True)


def _read_folder(path: Path) -> dict[str, Any]:
    content = sum(entry.stat().st_size for entry in path.rglob("*")) <= CONTENT_LIMIT
    for folder in (path, *(entry for entry in path.iterdir() if entry.is_dir())):
        for shard, offset, length in _parts(folder):
            if (found := shard.stat().st_size) < offset + length:
                raise ValueError(f"{shard.name} has {found:,} of at least {offset + length:,} bytes")
            if content:
                with shard.open("rb") as file:
                    file.seek(offset)
                    _check_archive(BytesIO(file.read(length)), f"{shard.name} from byte {offset:,} on", content=True)
    return _read_file(path / _REST)


def _parts(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """File, offset and length of every tensor in a folder of shards."""
    try:
        storage = FileSystemReader(folder).read_metadata().storage_data
    except Exception as error:  # of damaged bytes, pickle makes exceptions of any kind
        raise ValueError(f"{folder.name}/.metadata cannot be read ({type(error).__name__}: {error})") from error
    for part in storage.values():
        yield folder / part.relative_path, part.offset, part.length


def _check_archive(file: Any, name: str, *, content: bool) -> None:
    """
    Raises:
        ValueError: the zip archive that torch.save makes has no end, or other content than its checksums say.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{name} is cut off or no checkpoint")
    with zipfile.ZipFile(file) as archive:
        if content and (record := archive.testzip()):
            raise ValueError(f"{name} has other content than was written (in {record})")
