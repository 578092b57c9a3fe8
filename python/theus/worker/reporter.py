"""What a task in a worker tells its owner while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theus import _theus

if TYPE_CHECKING:
    from theus._theus import Channel, Control

__all__ = ["Reporter"]


class Reporter:
    """Sends LOG and PROGRESS frames for the task that runs.

    Parameters
    ----------
    channel : Channel
        To the owner.
    control : Control
        Says which task runs.
    """

    def __init__(self, channel: Channel, control: Control) -> None:
        self._channel = channel
        self._control = control

    def log(self, level: int, message: str) -> None:
        """Send a line for the owner's log."""
        self._send(_theus.KIND_LOG, (self._control.running, level), message)

    def progress(self, done: int, total: int, message: str) -> None:
        """Send how far the task is; a total of 0 is not known."""
        self._send(_theus.KIND_PROGRESS, (self._control.running, done, total), message)

    def _send(self, kind: int, fields: tuple[int, ...], message: str) -> None:
        # By the socket, also to an owner that polls: what lies in the page would be taken for the
        # task's outcome by a short cut, which closes then.
        self._channel.send_aside(kind, fields, (message.encode(errors="backslashreplace"),))
