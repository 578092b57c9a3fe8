"""What the binding does with memory, once each and small: run under valgrind, which is slow."""

import os
import sys

import numpy as np
import pyarrow as pa

import theus

ITEMS = 50_000


def scale(ctx, factor):
    made = ctx.heavy.alloc("made", (ITEMS,), "f8")
    made[:] = ctx.heavy["matrix"] * factor
    return made, ctx.heavy["table"].num_rows, np.ones(ITEMS)


def fail(ctx):
    message = "on purpose"
    raise ValueError(message)


def main():
    with theus.TheusEngine(workers=1) as engine:
        draft = engine.heavy.alloc("matrix", (ITEMS,), "f8")
        draft[:] = np.arange(ITEMS)
        matrix = draft.publish() if hasattr(draft, "publish") else engine.heavy["matrix"]
        rows = {"id": list(range(500)), "text": ["a", None, "bc", "d" * 40, ""] * 100}
        table = engine.heavy.put("table", pa.table(rows))
        assert table.num_rows == 500
        path = (
            engine.heavy.segment_path("matrix") if hasattr(engine.heavy, "segment_path") else None
        )
        if path is not None:
            assert theus.open(path)[7] == 7
        made, rows, ones = engine.submit(scale, factor=3.0).result(500)
        assert made[2] == 6 and rows == 500 and ones.sum() == ITEMS
        try:
            engine.submit(fail).result(500)
        except ValueError:
            pass
        else:
            sys.exit("the task did not fail")
        child = os.fork()
        if child == 0:
            assert matrix[3] == 3
            del matrix, table, made, draft
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0
    for bad in b"", b"TH", b"TH\x01\x08" + b"\xff" * 12:
        try:
            theus._theus.decode_frame(bad)
        except theus.ProtocolError:
            continue
        sys.exit("no frame was taken for one")


if __name__ == "__main__":
    main()
