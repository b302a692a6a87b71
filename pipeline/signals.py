"""Signals that ask to stop: when they are heard, and when they must wait."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn


class Stopped(KeyboardInterrupt):
    """The process was asked to end, by a scheduler or a terminal that closed: handled like Ctrl-C."""

    signal = signal.SIGTERM


class Terminated(Stopped):
    """SIGTERM."""


class HungUp(Stopped):
    """SIGHUP."""

    signal = signal.SIGHUP


def _stop(number: int, _frame) -> NoReturn:
    raise HungUp if number == signal.SIGHUP else Terminated


def hear_stop_signals() -> None:
    """Have SIGTERM and SIGHUP end the process as Ctrl-C does; what nohup told it to ignore stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it."""
    return 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back while something short is done that must not stop half way; they are heard at its end.

    Raises:
      KeyboardInterrupt: one came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        handlers[held[0]](held[0], None)
