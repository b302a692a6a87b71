import sys

import pytest

from benchmarks.measure import run_measured

# Burns half a second in a child of a child that nobody waits for, and holds 64 MiB there for a moment.
LEAVES_A_CHILD_BEHIND = """
import subprocess, sys, textwrap
subprocess.Popen([sys.executable, "-c", textwrap.dedent('''
    import time
    data = bytearray(b"x") * (64 << 20)
    while time.process_time() < 0.5: pass
    time.sleep(0.5)
''')])
"""


def test_what_a_command_leaves_behind_is_counted_too(tmp_path):
    cost = run_measured([sys.executable, "-c", LEAVES_A_CHILD_BEHIND], tmp_path / "log")
    assert cost.returncode == 0
    assert 0.5 <= cost.cpu_seconds < 5
    assert 64 <= cost.peak_mib < 300


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"got 3: .*because of that"):
        run_measured([sys.executable, "-c", "import sys; print('because of that'); sys.exit(3)"], tmp_path / "log")


def test_a_command_that_takes_too_long_is_ended(tmp_path):
    with pytest.raises(RuntimeError, match="got -9"):
        run_measured([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", timeout_s=0.5)
