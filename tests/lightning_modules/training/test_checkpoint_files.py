"""A checkpoint is whole or not there, whatever call of its writing or removal a kill comes before."""

import os
import shutil
import signal

import pytest
import torch

from datamodules.whole_files import restore_former
from lightning_modules.training.checkpoint_files import DamagedCheckpointError, WholeCheckpoints, read_state
from lightning_modules.training.strategies import FSDP2Strategy
from tests.faults.killed_writes import KilledWrites


def checkpoint(step):
    """What Lightning saves, small."""
    tensors = {"a": torch.full((64,), float(step)), "b": torch.arange(9.0)}
    return {"global_step": step, "state_dict": tensors, "optimizer_states": [], "lr_schedulers": [], "callbacks": {}}


def write(kind, path, step):
    if kind == "file":
        WholeCheckpoints().save_checkpoint(checkpoint(step), path)
    else:
        FSDP2Strategy(save_distributed_checkpoint=True).save_checkpoint(checkpoint(step), path)


def killed(at, action):
    """Whether `action` was killed before its call number `at` that changes files, in a process of its own."""
    child = os.fork()
    if child == 0:
        kills = KilledWrites(at)
        kills.install()
        with kills.counting():
            action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def step_of(path):
    """Of the sound checkpoint in a place, as a start with `--ckpt_path last` finds it; None where there is none."""
    restore_former(path.parent)
    return read_state(path)["global_step"] if path.exists() else None


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_call_of_writing_leaves_the_former_or_the_new_checkpoint(tmp_path, kind, before):
    at, seen, path = 0, [], tmp_path / "last.ckpt"
    while True:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if before != "nothing":
            write(before, path, 1)
        if not killed(at, lambda: write(kind, path, 2)):
            break
        seen.append(step_of(path))
        at += 1
    assert step_of(path) == 2 and path.is_dir() == (kind == "folder")
    assert len(seen) > 5
    former = None if before == "nothing" else 1
    assert seen == sorted(seen, key=lambda step: step == 2) and set(seen) == {former, 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_call_of_removal_leaves_no_part_under_the_name(tmp_path, kind):
    at, seen, path = 0, [], tmp_path / "step=2.ckpt"
    while True:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write(kind, path, 2)
        if not killed(at, lambda: WholeCheckpoints().remove_checkpoint(path)):
            break
        seen.append(step_of(path))
        at += 1
    assert not path.exists()
    assert set(seen) == {2, None}


def damage(path, kind):
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        content = bytearray(path.read_bytes())
        place = content.index(torch.full((64,), 2.0).numpy().tobytes())
        content[place : place + 8] = bytes(8)
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "empty", "zeros"])
@pytest.mark.parametrize("form", ["file", "folder"])
def test_damage_is_noticed(tmp_path, form, kind):
    path = tmp_path / "last.ckpt"
    write(form, path, 2)
    assert read_state(path)["global_step"] == 2
    damage(path if form == "file" else next(path.glob("*.distcp")), kind)
    with pytest.raises(DamagedCheckpointError, match=r"cut off|has other content|of at least|cannot be read"):
        read_state(path)


@pytest.mark.parametrize("part", [".metadata", "meta.pt", "__0_0.distcp"])
def test_a_folder_that_lacks_a_part_is_noticed(tmp_path, part):
    path = tmp_path / "last.ckpt"
    write("folder", path, 2)
    (path / part).unlink()
    with pytest.raises(DamagedCheckpointError, match=r"No such file|cannot be read"):
        read_state(path)


def test_weights_alone_are_not_resumed(tmp_path):
    path = tmp_path / "best.ckpt"
    WholeCheckpoints().save_checkpoint({"global_step": 3, "state_dict": {"a": torch.ones(2)}}, path)
    with pytest.raises(DamagedCheckpointError, match="weights without the state of the training"):
        read_state(path)
