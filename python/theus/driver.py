"""Who moves things forward: no thread owns the sockets, whoever waits may drive them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING
from weakref import finalize

from theus.interrupts import InterruptsDeferred

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Driver"]

Lock = threading.Lock
"""Where it is a *bell*, it is held but for the moment between a ring and the waiter's taking it."""

_LINGER_S = 1e-3
_PATIENCE_S = 50e-3


class Driver:
    """Lets one thread at a time lead: make steps until what it waits for is done.

    The others wait for its news. A thread of the driver's own leads while there are futures that
    nobody waits for.

    Parameters
    ----------
    step : callable of float or None
        Waits up to so many seconds for something to happen, and acts on it.
    next_timeout : callable
        How many seconds may pass until a step is due by itself; None for any number.
    unattended : callable
        Whether there is something that nobody waits for.

    Attributes
    ----------
    steps : int
        How many were made, by whomever.
    wake : int
        A descriptor that becomes readable when the leader should look again at what it does.
    """

    def __init__(
        self,
        step: Callable[[float | None], None],
        next_timeout: Callable[[], float | None],
        unattended: Callable[[], bool],
    ) -> None:
        self._step = step
        self._next_timeout = next_timeout
        self._unattended = unattended
        self.steps = 0
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Not at exit: what closes the engine then, perhaps later than this, still writes to it.
        finalize(self, os.close, self.wake).atexit = False
        self._closed = False
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        self._help_wanted = threading.Condition(self._lock)
        self._help_sleeps = False
        self._leader: int | None = None
        self._waiters: set[Lock] = set()
        self._helper_bell = _make_bell()
        self._helper: threading.Thread | None = None

    def drive(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Move things forward from this thread until `done()` or `timeout` seconds have passed.

        Raises
        ------
        KeyboardInterrupt
            At once, and when nothing is half done.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        bell = _make_bell()

        def break_off() -> None:
            os.eventfd_write(self.wake, 1)
            _ring(bell)

        with InterruptsDeferred(break_off) as interrupts:
            self._drive(lambda: interrupts.noted or done(), deadline, bell)

    def _drive(self, done: Callable[[], bool], deadline: float | None, bell: Lock) -> None:
        try:
            with self._lock:
                self._waiters.add(bell)
                self.poke()
            while not done() and self._lead(done, deadline, bell):
                pass
        finally:
            with self._lock:
                self._waiters.discard(bell)
                self._ring_all()

    def tell(self) -> None:
        """Let everybody who waits look whether it is done."""
        with self._lock:
            self._ring_all()
        self.poke()  # an event loop may have taken the very frame that the leader polls for

    def poke(self) -> None:
        """Wake the thread that leads, to look again at what it should do."""
        if self._leader not in (None, threading.get_ident()):
            os.eventfd_write(self.wake, 1)

    def woke(self) -> None:
        """Take the news that `wake` is readable, if it was meant for this thread."""
        if self._leader == threading.get_ident():
            self._drain_wake()

    def want_helper(self) -> None:
        """Have the driver's own thread look at what is unattended."""
        if not self._unattended():
            return
        if not self._has_helper():
            with self._lock:
                if not self._has_helper() and not self._closed:
                    self._helper = threading.Thread(
                        target=self._help, name="theus-dispatcher", daemon=True
                    )
                    self._helper.start()
        elif self._help_sleeps:
            with self._lock:
                self._help_wanted.notify()

    def _has_helper(self) -> bool:
        return self._helper is not None and self._helper.is_alive()

    def close(self) -> None:
        """End the helper, and everybody's waiting."""
        self._closed = True
        with self._lock:
            self._ring_all()
            self._help_wanted.notify_all()
        self.poke()

    def abandon(self) -> None:
        """Forget all threads in a forked child: there are none."""
        self._closed = True
        self._make_locks()

    def _ring_all(self) -> None:
        for bell in (*self._waiters, self._helper_bell):
            _ring(bell)

    def _lead(self, done: Callable[[], bool], deadline: float | None, bell: Lock) -> bool:
        """Lead until `done`, or wait for the leading thread's news; False when out of time."""
        own = threading.get_ident()
        if self._leader == own:  # a callback of what this thread has just delivered
            return self._step_until(done, deadline)
        with self._lock:
            leads = self._leader is None
            if leads:
                self._leader = own
        if not leads:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            bell.acquire(timeout=-1 if left is None else left)
            return True
        try:
            return self._step_until(done, deadline)
        finally:
            with self._lock:
                self._leader = None
                self._drain_wake()
                self._ring_all()

    def _step_until(self, done: Callable[[], bool], deadline: float | None) -> bool:
        while not done():
            timeout = self._next_timeout()
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                timeout = left if timeout is None else min(left, timeout)
            self._step(timeout)
        return True

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)

    def _help(self) -> None:
        """Lead while there are futures nobody waits for, but only if nobody waits.

        Whoever submits usually waits next, so this thread lets some time pass before it looks, and
        more and more while others wait: waking it for each task would cost more than the task.
        """

        def wanted() -> bool:
            return self._closed or self._unattended()

        def idle() -> bool:
            return self._closed or bool(self._waiters) or not wanted()

        patience = _LINGER_S
        while not self._closed:
            with self._lock:
                self._help_sleeps = True
                self._help_wanted.wait_for(wanted)
                self._help_sleeps = False
            steps = self.steps
            time.sleep(patience)
            if idle():
                patience = min(2 * patience, _PATIENCE_S)
            elif self.steps == steps:  # who submits many makes steps meanwhile
                patience = _LINGER_S
                self._lead(idle, None, self._helper_bell)


def _make_bell() -> Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


def _ring(bell: Lock) -> None:
    with contextlib.suppress(RuntimeError):  # it has been rung, and not been heard yet
        bell.release()
