"""A file is there as it was or whole and new, whatever happens; nothing else is ever replaced or left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

import residmix as rm
from residmix.atomic import atomic_path

POSIX = pytest.mark.skipif(os.name == "nt", reason="the system has no such files")


def write(path, text="new"):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@POSIX
def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path / "folder", "a folder"), ("/dev/null", "a device")):
        with pytest.raises(OSError, match=rf"can't write .*: it is {kind}, and only regular files are replaced"):
            write(path)
    os.symlink("/dev/null", tmp_path / "link")
    with pytest.raises(OSError, match=r"link': it is a device"):
        write(tmp_path / "link")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


@POSIX
def test_a_link_is_followed_to_the_file_it_points_to(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("old")
    os.symlink(tmp_path / "deep" / "file", tmp_path / "link")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "file").read_text() == "new"
    os.symlink(tmp_path / "deep" / "later", tmp_path / "dangling")
    write(tmp_path / "dangling")
    assert (tmp_path / "deep" / "later").read_text() == "new"


@POSIX
def test_permissions_are_those_of_the_file_that_is_replaced(tmp_path):
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o600)
    write(tmp_path / "secret")
    assert stat.S_IMODE(os.stat(tmp_path / "secret").st_mode) == 0o600
    (tmp_path / "plain").write_text("")
    write(tmp_path / "other")
    assert os.stat(tmp_path / "other").st_mode == os.stat(tmp_path / "plain").st_mode


KILLED = """
import os, signal, sys
from residmix.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

AFTER = """
import sys
from residmix.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("new")
"""


@POSIX
def test_what_killed_processes_left_is_swept_by_the_next_and_what_others_write_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # the second had swept what the first left
    with atomic_path(tmp_path / "mine") as temporary:  # alive: this process has the second one's swept by now
        temporary.write_text("mine")
        subprocess.run([sys.executable, "-c", AFTER, str(path)], check=True)
        assert temporary.exists()
    assert path.read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "mine"]


FULL = """
import resource, sys
import numpy as np
import residmix as rm
X = np.random.default_rng(0).normal(size=(200_000, 4))
model = rm.Residualizer().fit(X)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    model.transform(X, out=sys.argv[1])
except OSError as error:
    print(type(error).__name__, error)
"""


@POSIX
@pytest.mark.slow
def test_a_file_that_finds_no_room_is_an_oserror_with_path_and_bytes_and_the_old_one_stays(tmp_path):
    path = tmp_path / "out.parquet"
    path.write_bytes(b"old")
    # a limit of the process stands in for a full disk, which a test can't have everywhere
    run = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "OSError" in run.stdout
    assert "the file needs 6,400,000 bytes, and the existing file is kept" in run.stdout
    assert str(path) in run.stdout
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.parquet"]


def test_an_error_of_what_is_read_stays_what_it_is(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "out"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(OSError, match="it is a folder"):
        rm.save(rm.GaussianMixture().fit(rows), tmp_path)


FOLDER = """
import os, signal, sys
from residmix.atomic import scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("half")
    if len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@POSIX
def test_a_folder_of_the_moment_that_a_killed_process_left_is_swept_too(tmp_path):
    path = str(tmp_path / "file")
    assert subprocess.run([sys.executable, "-c", FOLDER, path, "die"], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    subprocess.run([sys.executable, "-c", FOLDER, path], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_left_by_a_dead_process_of_ones_own_number_is_swept_and_one_in_use_is_not(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
        write(tmp_path / "b")
        assert temporary.exists()
    # numbers of processes are given again, as in containers, where it's always the same
    (tmp_path / "other").mkdir()
    left = tmp_path / "other" / temporary.name
    left.write_text("half")
    write(tmp_path / "other" / "c")
    assert [path.name for path in left.parent.iterdir()] == ["c"]
