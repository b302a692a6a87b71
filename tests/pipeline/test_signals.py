"""Signals that ask to stop."""

import os
import signal
import threading

import pytest

from bulktag.pipeline import signals


@pytest.fixture
def hearing():
    """Handlers as the command sets them, and as they were before afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signals.hear_stop_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGINT, KeyboardInterrupt, 130),
        (signal.SIGTERM, signals.Terminated, 143),
        (signal.SIGHUP, signals.HungUp, 129),
    ],
)
def test_each_signal_ends_the_work_with_its_own_code(hearing, number, error, code):
    with pytest.raises(error) as caught:
        os.kill(os.getpid(), number)
    assert signals.exit_code(caught.value) == code


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals.hear_stop_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        with signals.uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_the_end_of_what_must_not_stop(hearing):
    done = []
    with pytest.raises(signals.Terminated), signals.uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(True)
    assert done
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_go_on_without_holding_signals():
    seen = []

    def work():
        with signals.uninterrupted():
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
