"""What `--ckpt_path last` means: the newest `last.ckpt` of the earlier starts of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"last(-v\d+)?\.ckpt")

_PLACES = ("checkpoints", "*/checkpoints", "*/*/checkpoints")
"""Below the trainer's default_root_dir: without a logger, and with Lightning's loggers (name, then version)."""


def last_checkpoint(trainer: Mapping[str, Any]) -> Path | None:
    """The newest last checkpoint below `default_root_dir`, file or folder; None where there is none.

    Every start of a run logs to a folder of its own, and Lightning looks for the last checkpoint in the new one, where
    nothing is yet. Where a ModelCheckpoint has a `dirpath`, this returns None and Lightning finds it.

    Args:
        trainer: the parsed configuration of the trainer.
    """
    if any((entry.get("init_args") or {}).get("dirpath") for entry in trainer.get("callbacks") or []):
        return None
    root = Path(trainer.get("default_root_dir") or ".")
    found = [path for place in _PLACES for path in root.glob(f"{place}/last*.ckpt") if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
