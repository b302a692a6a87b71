"""Staging folders: made, locked, removed."""

import errno
import os
import pathlib
import threading

import pytest

from bulktag.pipeline import workspace
from bulktag.pipeline.workspace import staging, try_lock


def test_a_staging_folder_goes_though_a_thread_still_writes_into_it(tmp_path):
    stop = threading.Event()

    def keep_writing(folder: pathlib.Path):
        while not stop.is_set():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / os.urandom(4).hex()).write_text("x")
            except OSError:
                continue

    with staging(str(tmp_path / "out"), "a") as made:
        thread = threading.Thread(target=keep_writing, args=(pathlib.Path(made.work, "tags"),))
        thread.start()
        threading.Timer(0.05, stop.set).start()
    thread.join()
    # The thread may make its folder once more; nothing that the run had is there.
    assert not list((tmp_path / "out").glob(".bulktag-*/final")) and not list((tmp_path / "out").glob(".bulktag-a-*"))


def test_an_output_that_another_run_removes_at_this_moment_is_made_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    real, calls = workspace.locked, []

    def vanishing(folder):
        calls.append(folder)
        if len(calls) == 1:
            out.rmdir()
        return real(folder)

    monkeypatch.setattr(workspace, "locked", vanishing)
    with staging(str(out), "a") as made:
        assert os.path.isdir(made.work) and len(calls) == 2
    assert not out.exists()


def test_an_output_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file" / "out", pathlib.Path("/proc/out"), tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="expected an output folder that can be made"), staging(str(output), "a"):
            pass


def test_a_full_disk_is_no_users_mistake(tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(os, "makedirs", full)
    with pytest.raises(OSError, match="No space left"), staging(str(tmp_path / "out"), "a"):
        pass


def test_a_lock_is_held_once(tmp_path):
    lock = try_lock(str(tmp_path))
    assert lock is not None and try_lock(str(tmp_path)) is None
    os.close(lock)
    again = try_lock(str(tmp_path))
    assert again is not None
    os.close(again)


def test_a_disk_without_locks_still_works(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workspace.fcntl, "flock", no_locks)
    (tmp_path / "out" / ".bulktag-other").mkdir(parents=True)
    with staging(str(tmp_path / "out"), "a") as made:
        assert os.path.isdir(made.final)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".bulktag-other"]  # perhaps it is alive
