"""One training at a time in a folder: two would write over each other's rollouts, checkpoints and models."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from rewards.errors import UserError

NAME = "fit.lock"
BEAT_SECONDS = 10.0
"""How often the holder touches the file, so that other machines see that it lives."""
PATIENCE_SECONDS = 60.0
"""How long the file of another machine must stay untouched before its process counts as dead."""


@dataclass(frozen=True, kw_only=True)
class _Process:
    host: str
    machine: str
    """Boot and namespace of process ids: only where they agree does a pid mean the same."""
    pid: int
    born: str
    """Clock ticks after the boot; tells the process from a later one with the same pid."""
    since: str


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `fit.lock` in a run's folder; of several ranks, the first process does, and the others pass.

    The file of a process that died on this machine is taken over at once, that of another machine when it has not been
    touched for `PATIENCE_SECONDS`.

    Raises:
        UserError: another process trains in the folder.
    """
    if not _is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder.resolve() / NAME, json.dumps(asdict(_this_process()))
    while not _created(path, mine):
        _remove_if_stale(path)
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, mine, over), name="run lock", daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        if _content(path) == mine:
            path.unlink(missing_ok=True)


def _is_first_process() -> bool:
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return (_get_rank() or 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _this_process() -> _Process:
    pid = os.getpid()
    return _Process(
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        born=_birth(pid) or "",
        since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    )


def _machine() -> str:
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _birth(pid: int) -> str | None:
    """When a process of this machine began; None if there is none, or only its entry in the table of processes."""
    try:
        # The name, in parentheses, may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else fields[18]


def _created(path: Path, mine: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mine)
    except FileExistsError:
        return False
    return True


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _remove_if_stale(path: Path) -> None:
    content = _content(path)
    if content is None:  # released in this moment
        return
    holder = _Process(**json.loads(content)) if content else None  # empty: created, and not yet written
    if _is_alive(path, content, holder):
        who = f"process {holder.pid} on {holder.host} since {holder.since}" if holder else "another process"
        raise UserError(
            f"{path.parent} is in use: {who} trains in it and holds {path.name}. Wait until it has ended, or give this "
            "run a folder of its own with trainer.default_root_dir."
        )
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _content(aside) != content:  # another process took the stale one over first, and this is its own
        with suppress(FileExistsError):
            os.link(aside, path)
    else:
        who = f"process {holder.pid} on {holder.host}" if holder else "a process"
        rank_zero_info(f"{path} was left behind by {who}, which has ended; this run takes it over.")
    aside.unlink()


def _is_alive(path: Path, content: str, holder: _Process | None) -> bool:
    if holder is not None and holder.machine == _machine():
        return _birth(holder.pid) == holder.born
    where = holder.host if holder else "a process that is just starting"
    rank_zero_info(f"{path} belongs to {where}; waiting up to {PATIENCE_SECONDS:.0f} s for a sign of life.")
    touched, until = _touched(path), time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, PATIENCE_SECONDS / 10))
        if _content(path) != content:
            return False  # released or taken over: not this one any more
        if _touched(path) != touched:
            return True
    return False


def _touched(path: Path) -> int | None:
    try:
        with path.open("rb") as file:  # opening asks the server of a network file system anew
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _beat(path: Path, mine: str, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        if _content(path) != mine:
            rank_zero_warn(f"{path} is no longer this run's: another process may be training in {path.parent} too.")
            return
        with suppress(FileNotFoundError):
            os.utime(path)
