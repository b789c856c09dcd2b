"""Kills a process inside one of its writes to the disk: at its call number N within checkpoints.

As a program: `python -m tests.faults.killed_writes CHECKPOINT N ARGUMENT...` runs `cli.py ARGUMENT...` and kills it at
call N of its checkpoint number CHECKPOINT.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path


class KilledWrites:
    """Counts the calls that change files within `counting()`, and kills the process group before call number `at`."""

    def __init__(self, at: int | None = None, *, group: bool = False) -> None:
        self.at = at
        self.calls = 0
        self._group = group
        self._counting = False

    @contextmanager
    def counting(self):
        self._counting = True
        yield
        self._counting = False

    def call(self) -> None:
        if not self._counting:
            return
        if self.calls == self.at:
            (os.killpg if self._group else os.kill)(os.getpgrp() if self._group else os.getpid(), signal.SIGKILL)
        self.calls += 1

    def install(self) -> None:
        """Count from now on, in this process."""
        for module, names in ((os, ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")), (shutil, ("rmtree",))):
            for name in names:
                setattr(module, name, self._counted(getattr(module, name)))
        opened = Path.open

        def open_counted(path, mode="r", *args, **kwargs):
            if mode != "wb":
                return opened(path, mode, *args, **kwargs)
            self.call()
            return _CountedWriter(io.FileIO(path, "wb"), self)

        Path.open = open_counted

    def _counted(self, function):
        def counted(*args, **kwargs):
            self.call()
            return function(*args, **kwargs)

        return counted


class _CountedWriter(io.BufferedWriter):
    def __init__(self, raw: io.FileIO, kills: KilledWrites) -> None:
        super().__init__(raw)
        self._kills = kills

    def write(self, data) -> int:
        before = self._kills.calls
        if self._kills.at == before:
            super().write(bytes(data)[: len(data) // 2])
            self.flush()  # half of it reaches the disk
        self._kills.call()
        return super().write(data)


def main() -> int:
    import lightning.pytorch as pl

    import cli

    number, at, *arguments = sys.argv[1:]
    kills = KilledWrites(int(at), group=True)
    kills.install()
    save, count = pl.Trainer.save_checkpoint, 0

    def save_counted(trainer, *args, **kwargs):
        nonlocal count
        count += 1
        if count != int(number) or not trainer.is_global_zero:
            return save(trainer, *args, **kwargs)
        with kills.counting():
            return save(trainer, *args, **kwargs)

    pl.Trainer.save_checkpoint = save_counted
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
