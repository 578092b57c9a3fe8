"""What the binding does with memory, once each and small: valgrind is slow.

The worker's loop runs in this process, with a thread for its owner, as valgrind knows no pidfd.
"""

import os
import pickle
import threading

import numpy as np
import pyarrow as pa

import theus
from theus import _theus
from theus._theus import Channel, Control, Session, Zone
from theus.serialize.message import Message
from theus.serialize.pickler import dumps
from theus.serialize.unpickler import loads
from theus.worker.loop import Worker

ITEMS = 50_000


def make(ctx, factor):
    made = ctx.heavy.alloc("made", (ITEMS,), "f8")
    made[:] = factor
    return made, np.ones(ITEMS)


def fail(ctx):
    message = "on purpose"
    raise ValueError(message)


def refused(call, error):
    try:
        call()
    except error:
        return True
    return False


def main():
    with theus.TheusEngine(workers=1) as engine:
        heavy = engine.heavy
        draft = heavy.alloc("matrix", (ITEMS,), "f8")
        draft[:] = np.arange(ITEMS)
        matrix = heavy.seal("matrix")
        rows = {"id": list(range(500)), "text": ["a", None, "bc", "d" * 40, ""] * 100}
        table = heavy.put("table", pa.table(rows))
        assert theus.open(heavy.path("matrix"))[7] == 7
        assert theus.open(heavy.path("table")).equals(table)
        child = os.fork()
        if child == 0:
            assert matrix[3] == 3
            del matrix, table, draft
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0
        heavy.free("matrix")
        assert matrix[3] == 3
    for wrong in b"", b"TH", b"TH\x02\x08" + b"\xff" * 12:
        assert refused(lambda wrong=wrong: _theus.decode_frame(wrong), theus.ProtocolError)


def own(session, channel, outcomes):
    """Send two tasks, take over what they made, end the worker."""
    channel.recv(0.0)  # it says hello
    channel.send_blocking(_theus.KIND_STATE, (1,), (b"[]", b"[]"))
    for number, (function, inputs) in enumerate([(make, {"factor": 2.0}), (fail, {})], 1):
        definition = pickle.dumps(({}, dumps(function, lambda _: None, label="f").data))
        channel.send_blocking(_theus.KIND_FUNCTION, (number, 1), (definition,))
        message = dumps(inputs, lambda _: None, label="inputs")
        task = (number, 1, number, 0)
        channel.send_blocking(_theus.KIND_TASK, task, (message.data,))
        parts, outputs, kind = None, [], 0
        while kind not in (_theus.KIND_RESULT, _theus.KIND_ERROR):
            kind, fields, attachments = channel.recv(0.0)
            if kind == _theus.KIND_PARTS:
                parts = channel.take_parts(fields)
            elif kind == _theus.KIND_OUTPUT:
                outputs.append(session.adopt(channel, 1))
        outcomes.append(loads(Message(attachments[0], parts, outputs=outputs)))
    channel.send_blocking(_theus.KIND_SHUTDOWN, ())


def work():
    session = Session.create(heavy_limit=64 << 20)
    channel, theirs = Channel.pair()
    _, control = Control.create()
    budget = Zone.from_fd(session.budget_fd(), 1, session.id)
    outcomes = []
    owner = threading.Thread(target=own, args=(session, channel, outcomes))
    owner.start()
    Worker(Channel.from_fd(theirs), Control.from_fd(control), budget).serve()
    owner.join()
    (made, ones), error = outcomes
    assert (made[7], ones.sum(), type(error)) == (2.0, ITEMS, ValueError)
    del made, ones, outcomes
    channel.close()
    session.close()


if __name__ == "__main__":
    main()
    work()
