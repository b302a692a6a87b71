import os
import threading

from bulktag.transforms import progress
from bulktag.transforms.progress import add_progress, flush_progress, read_progress


def test_nothing_happens_where_nobody_watches():
    add_progress(None, done=1)
    flush_progress(None)


def test_totals_add_up_over_threads_and_processes(tmp_path):
    folder = str(tmp_path)
    threads = [threading.Thread(target=lambda: [add_progress(folder, done=1) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flush_progress(folder)
    (tmp_path / "of-another-process.json").write_text('{"done": 10, "errors": 1}')
    assert read_progress(folder) == {"done": 2010, "errors": 1}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json"]


def test_a_file_that_is_half_written_is_left_for_the_next_look(tmp_path):
    (tmp_path / "a.json").write_text('{"done": ')
    (tmp_path / "b.json").write_text('{"done": 3}')
    assert read_progress(str(tmp_path)) == {"done": 3}


def test_a_job_does_not_fail_for_a_progress_line(tmp_path):
    folder = str(tmp_path / "gone")
    add_progress(folder, done=1)
    flush_progress(folder)
    assert not os.path.exists(folder)
    assert read_progress(folder) == {}


def test_files_are_written_at_most_twice_a_second(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(progress, "_write", lambda *args: writes.append(args))
    for _ in range(10_000):
        add_progress(str(tmp_path), done=1)
    assert len(writes) < 10
