"""One training in a folder: real processes that hold, die, and race for the lock."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lightning_modules.training import run_lock as locking
from lightning_modules.training.run_lock import NAME, run_lock
from rewards.errors import UserError

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from lightning_modules.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def first_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start():
    """Starts processes that take the lock of a folder, and hold it until their standard input ends."""
    started = []

    def start(folder):
        command = [sys.executable, "-c", HOLD, str(folder)]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def written(folder, **changes):
    """A lock as another process leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(asdict(replace(locking._this_process(), **changes))))


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, start, caplog):
    first = start(tmp_path / "run")
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"run is in use: process {first.pid} on \S+ since .*default_root_dir"):
        run_lock(tmp_path / "run").__enter__()
    first.communicate("\n")
    assert not (tmp_path / "run" / NAME).exists()
    with run_lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []
    assert "takes it over" not in caplog.text


def test_the_lock_of_a_killed_process_is_taken_over_with_a_word(tmp_path, start, caplog):
    first = start(tmp_path)
    assert first.stdout.readline() == "held\n"
    first.kill()
    wait_until(lambda: locking._birth(first.pid) is None)  # it is a zombie then: nobody has waited for it
    with caplog.at_level("INFO"), run_lock(tmp_path):
        assert f"left behind by process {first.pid} on {socket.gethostname()}" in caplog.text
    assert list(tmp_path.iterdir()) == []


def wait_until(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_later_process_with_the_same_number_does_not_hold_it(tmp_path):
    written(tmp_path, born="1")  # this process, had it begun with the machine
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("lives", [True, False])
def test_of_another_machine_the_file_shows_whether_the_holder_lives(tmp_path, monkeypatch, lives):
    monkeypatch.setattr(locking, "PATIENCE_SECONDS", 1.0)
    written(tmp_path, host="elsewhere", machine="another boot")
    path, over = tmp_path / NAME, threading.Event()

    def touch():
        while not over.wait(0.05):
            os.utime(path)

    holder = threading.Thread(target=touch)
    if lives:
        holder.start()
        with pytest.raises(UserError, match="on elsewhere"):
            run_lock(tmp_path).__enter__()
        over.set()
        holder.join()
    else:
        with run_lock(tmp_path):
            pass


def test_the_holder_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        before = (tmp_path / NAME).stat().st_mtime_ns
        wait_until(lambda: (tmp_path / NAME).stat().st_mtime_ns > before)


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path, start):
    written(tmp_path, born="1")
    racers = [start(tmp_path) for _ in range(4)]
    # The winner holds until it is told to end; all others have ended with the error by then.
    said = [racer.stdout.readline() for racer in racers]
    assert sorted(said) == ["", "", "", "held\n"]
    winner = racers[said.index("held\n")]
    assert json.loads((tmp_path / NAME).read_text())["pid"] == winner.pid
    assert all("is in use" in racer.communicate()[1] for racer in racers if racer is not winner)
    winner.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_an_error_releases_it(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_of_several_ranks_takes_it(tmp_path, monkeypatch, environment, first):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with run_lock(tmp_path):
        assert (tmp_path / NAME).exists() == first
