"""Frames that mean anything or nothing, for the loop of a worker, by atheris: ``make fuzz-worker``.

The loop may answer, or end as `_worker.main` expects; whatever else it raises is a finding. Pickles
are taken from a list: a worker runs what they say by design, and trusts its owner that far.
"""

import json
import os
import pickle
import socket
import struct
import sys

import atheris

from theus.serialize.unpickler import attach_with

with atheris.instrument_imports(include=["theus"]):
    from theus import _theus
    from theus.errors import ProtocolError, TheusError
    from theus.worker.loop import Worker

CALL = pickle.dumps(((), {}), 5)
PICKLES = [
    CALL,
    pickle.dumps(({}, pickle.dumps(int)), 5),
    pickle.dumps([1, "a"]),
    b"",
    b"no pickle",
]
TEXTS = [b"[]", b"{}", b'["a"]', b"[7]", b'{"sys_path": []}', b"null", b"{", b'[{"name": "a"}]']
KINDS = [getattr(_theus, name) for name in dir(_theus) if name.startswith("KIND_")]
MAX_FRAMES = 12
ENDS = (EOFError, BrokenPipeError, ConnectionResetError, ProtocolError, SystemExit)


# What means something, in the right order; any of them may come, or not, between the others.
WORK = [
    _theus.encode_frame(_theus.KIND_STATE, (1,), (b"[]", b"[]")),
    _theus.encode_frame(_theus.KIND_STATE, (2,), (b"[]", b'["a"]', CALL)),
    _theus.encode_frame(
        _theus.KIND_STATE,
        (3,),
        (b'{"base":2,"removed":["x"],"set":[]}', b'{"removed":["a"],"set":["b"]}', CALL),
    ),
    _theus.encode_frame(_theus.KIND_FUNCTION, (1, 1), (PICKLES[1],)),
    _theus.encode_frame(_theus.KIND_TASK, (1, 1, 1, 2), (CALL,)),
    _theus.encode_frame(_theus.KIND_TASK, (2, 2, 1, 0), (PICKLES[2],)),
    _theus.encode_frame(_theus.KIND_FORGET_FUNCTION, (1,)),
    _theus.encode_frame(_theus.KIND_FORGET_STATE, (1,)),
]


def frame(data):
    """Encode a frame, of which any part may be wrong; schemas/frames.json has the format."""
    if data.ConsumeProbability() < 0.6:
        return data.PickValueInList(WORK)
    kind = data.PickValueInList(KINDS) if data.ConsumeProbability() < 0.95 else data.ConsumeInt(1)
    fields = [data.ConsumeIntInRange(0, 3) for _ in range(data.ConsumeIntInRange(0, 5))]
    if data.ConsumeProbability() < 0.1:
        fields.append(data.ConsumeIntInRange(0, 2**64 - 1))
    attachments = []
    for _ in range(data.ConsumeIntInRange(0, 4)):
        which = data.ConsumeIntInRange(0, 2)
        attachments.append(
            [
                lambda: data.PickValueInList(PICKLES),
                lambda: data.PickValueInList(TEXTS),
                lambda: json.dumps(data.ConsumeUnicodeNoSurrogates(20)).encode(),
            ][which]()
        )
    words = [*fields, *map(len, attachments)]
    total = 16 + 8 * len(words) + sum(map(len, attachments))
    if data.ConsumeProbability() < 0.05:
        total = data.ConsumeIntInRange(0, 2**64 - 1)
    head = struct.pack(
        "<BBHHQ", _theus.PROTOCOL_VERSION, kind & 255, len(fields), len(attachments), total
    )
    return b"TH" + head + struct.pack(f"<{len(words)}Q", *words) + b"".join(attachments)


def run(zone, control, null, given):
    """Send the frames that `given` stands for, and let the loop take them."""
    data = atheris.FuzzedDataProvider(given)
    ours, theirs = socket.socketpair()
    channel = _theus.Channel.from_fd(theirs.detach())
    path, environment = list(sys.path), dict(os.environ)
    try:
        for _ in range(data.ConsumeIntInRange(1, MAX_FRAMES)):
            files = [null] * (data.ConsumeProbability() < 0.1)
            socket.send_fds(ours, [frame(data)], files)
        ours.shutdown(socket.SHUT_WR)
        Worker(channel, control, zone).serve()
    except ENDS:
        pass
    finally:
        channel.close()
        ours.close()
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)


def main():
    session = _theus.Session.create()
    control, control_fd = _theus.Control.create()
    os.close(control_fd)
    null = os.open(os.devnull, os.O_RDONLY)
    attach_with(refuse)
    # One for all: a worker's loop is not freed before its process ends.
    zone = _theus.Zone.from_fd(session.budget_fd(), 1, session.id)
    atheris.Setup(sys.argv, lambda given: run(zone, control, null, given))
    try:
        atheris.Fuzz()
    finally:
        session.close()


def refuse(*_):
    message = "there is no entry here"
    raise TheusError(message)


if __name__ == "__main__":
    main()
