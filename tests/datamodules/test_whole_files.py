"""A write that fails or is killed at any step leaves the former content, and nothing that the next write minds."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest

from datamodules.whole_files import whole_file, whole_folder, write_whole


@contextmanager
def umask(mask):
    former = os.umask(mask)
    yield
    os.umask(former)


def write_folder(path, text, extra=None):
    with whole_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)
        if extra:
            (folder / extra).touch()


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    with whole_file(path, "wb") as file:
        file.write(b"\x00\xff")
        assert path.read_bytes() == "é\n".encode()  # the former content, until the block ends
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_half_way_leaves_the_former_content(tmp_path, error):
    write_whole(tmp_path / "a.txt", "former")
    write_folder(tmp_path / "folder", "former")
    with pytest.raises(error), whole_file(tmp_path / "a.txt") as file:
        file.write("half")
        raise error
    with pytest.raises(error), whole_folder(tmp_path / "folder") as folder:
        (folder / "half.txt").write_text("half")
        raise error
    assert content(tmp_path) == {"a.txt": "former", "folder/inner/a.txt": "former"}


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path):
    write_folder(tmp_path / "folder", "former", extra="only in the former one")
    write_folder(tmp_path / "folder", "new")
    assert content(tmp_path) == {"folder/inner/a.txt": "new"}
    (tmp_path / "file").write_text("a file where the folder shall be")
    write_folder(tmp_path / "file", "new")
    assert content(tmp_path) == {"folder/inner/a.txt": "new", "file/inner/a.txt": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_permissions_are_those_of_the_umask(tmp_path):
    with umask(0o027):
        write_whole(tmp_path / "a.txt", "a")
        write_folder(tmp_path / "folder", "a")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_leftovers_are_removed_and_those_of_other_names_are_left_alone(tmp_path):
    (tmp_path / ".a.txt.123.partial").write_text("of a killed writer")
    (tmp_path / ".a.txt.b.123.partial").write_text("of another file")
    (tmp_path / ".folder.123.partial").mkdir()
    (tmp_path / ".folder.123.partial" / "half").touch()
    write_whole(tmp_path / "a.txt", "a")
    write_folder(tmp_path / "folder", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.txt.b.123.partial", "a.txt", "folder"]


def test_of_two_writers_the_first_fails_and_nothing_is_mixed(tmp_path):
    def other_process():
        code = (
            "import sys; from pathlib import Path; from datamodules.whole_files import write_whole;"
            "write_whole(Path(sys.argv[1]), 'second')"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=True)

    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt") as file:
        file.write("first")
        other_process()
    assert content(tmp_path) == {"a.txt": "second"}


KILLED = """
import os, signal, sys
from pathlib import Path
from datamodules import whole_files

calls = 0
def dies(function):
    def counted(*args, **kwargs):
        global calls
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*args, **kwargs)
    return counted

whole_files.os.fsync = dies(os.fsync)
Path.rename, Path.replace = dies(Path.rename), dies(Path.replace)
whole_files.shutil.rmtree = dies(whole_files.shutil.rmtree)
path = Path(sys.argv[2])
if sys.argv[1] == "file":
    whole_files.write_whole(path, "new")
else:
    with whole_files.whole_folder(path) as folder:
        (folder / "a.txt").write_text("new")
"""


def kill_at(step, kind, path):
    """Write in a process that is killed before its call number `step` to the file system; whether it was."""
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(path), str(step)])
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_step_leaves_the_former_or_the_new_content(tmp_path, kind):
    step, killed = 0, True
    seen = []
    while killed:
        path = tmp_path / str(step) / "x"
        (write_whole if kind == "file" else write_folder)(path, "former")
        killed = kill_at(step, kind, path)
        found = path.read_text() if kind == "file" else content(path) if path.exists() else None
        seen.append(found)
        # The next write that fails leaves what was there, also where the kill came between the two renames.
        with pytest.raises(ValueError), (whole_file if kind == "file" else whole_folder)(path):
            raise ValueError
        assert (path.read_text() if kind == "file" else content(path)) == (found or {"inner/a.txt": "former"})
        (write_whole if kind == "file" else write_folder)(path, "last")
        assert [entry.name for entry in path.parent.iterdir()] == ["x"]
        step += 1
    if kind == "file":
        # fsync of the file, replace, fsync of the folder, then no kill.
        assert seen == ["former", "former", "new", "new"]
    else:
        # Two fsyncs, rename of the former one, rename of the new one (nothing in place), fsync, removal, no kill.
        former, new = {"inner/a.txt": "former"}, {"a.txt": "new"}
        assert seen == [former, former, former, None, new, new, new]
