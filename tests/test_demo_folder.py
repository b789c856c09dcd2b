"""A demo replaces an earlier demo, with a word, and nothing else."""

from pathlib import Path

import pytest

from lightning_modules.commands.demo_command import demo_command
from lightning_modules.policy import tiny
from rewards.errors import UserError


class ReachedError(Exception):
    """The demo has made room and builds its model."""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    def reached(*_, **__):
        raise ReachedError

    monkeypatch.setattr(tiny, "write_tiny_model", reached)
    return lambda: demo_command(["demo", f"--output={tmp_path}"], run=reached)


def former(folder: Path, name: str) -> Path:
    (folder / "sft").mkdir()
    (folder / "sft" / name).write_text("former")
    return folder / "sft" / name


def test_an_earlier_demo_is_replaced_with_a_word(tmp_path, demo, capsys):
    path = former(tmp_path, "model")
    (tmp_path / "tiny_model").mkdir()
    (tmp_path / "tiny_model" / "generated.json").write_text("{}")
    with pytest.raises(ReachedError):
        demo()
    assert not path.parent.exists()
    assert f"Replacing the earlier demo in {tmp_path}: removing {tmp_path / 'sft'}." in capsys.readouterr().out


def test_a_folder_that_no_demo_made_is_refused(tmp_path, demo):
    path = former(tmp_path, "thesis.tex")
    with pytest.raises(UserError, match=r"sft would be removed, but no demo made that folder"):
        demo()
    assert path.read_text() == "former"


def test_a_first_demo_says_nothing_of_the_kind(tmp_path, demo, capsys):
    with pytest.raises(ReachedError):
        demo()
    assert "Replacing" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # the lock is released
