"""SIGINT, SIGTERM and SIGHUP as a request to stop soon, with nothing lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runs.errors import Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list that receives the number of a stop signal, for polling. A second signal raises `Stopped` at once.

    SIGHUP, which is sent when a terminal closes, stays ignored where the process ignores it, as under `nohup`. Only the
    main thread of a process can handle signals; in another thread the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise Stopped(number, f"stopped at once by a second signal, {signal.Signals(number).name}")

    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heeded = [number for number in STOP_SIGNALS if not (nohup and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
