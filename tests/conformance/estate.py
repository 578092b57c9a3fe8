"""A process that owns a session with one entry, and does nothing more.

It hands its budget down by a socket, whose descriptor is its argument, and tells its session's id.
"""

import socket
import sys
import time

from theus import _theus


def main(descriptor):
    session = _theus.Session.create()
    segment = session.create_tensor("heirloom", (1000,), "f8")
    session.publish(segment)
    with socket.socket(fileno=descriptor) as channel:
        socket.send_fds(channel, [session.id.encode()], [session.budget_fd()])
    time.sleep(1000)


if __name__ == "__main__":
    main(int(sys.argv[1]))
