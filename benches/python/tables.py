"""A table into shared memory and out again in another process: Theus, pyarrow's IPC, and Ray.

``--smoke`` runs a small table a few times, to see that it works; its figures mean nothing. Ray
takes part if it is installed.
"""

import argparse
import contextlib
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pyarrow as pa

from tasks import again, open_heavy, open_shared, rows_of, timed
from theus import TheusEngine

ROWS = 18_000_000  # about 1 GiB


def make(rows):
    numbers = np.random.default_rng(0)
    words = pa.array(numbers.integers(0, 10**9, 1000).astype("S9")).cast(pa.string())
    return pa.table(
        {
            **{f"x{number}": numbers.random(rows) for number in range(4)},
            "id": np.arange(rows),
            "day": pa.array(np.arange(rows, dtype=np.int32)).cast(pa.date32()),
            "word": pa.concat_arrays([words] * (rows // 1000)),
            "code": pa.array(np.arange(rows) % 100).dictionary_encode(),
        }
    )


class Theus:
    def __init__(self, table):
        self.table = table
        self.engine = TheusEngine(workers=1)
        self.engine.submit(rows_of).result()

    def put(self):
        self.engine.heavy.put("table", self.table)

    def get(self):
        path = self.engine.heavy.path("table")
        return self.engine.submit(open_heavy, path=path).result()

    def close(self):
        self.engine.close()


class SharedIpc:
    """pyarrow's IPC file in a SharedMemory, copied by two threads."""

    def __init__(self, table):
        self.table = table
        self.block = None
        self.pool = ProcessPoolExecutor(1)
        self.pool.submit(abs, 1).result()

    def put(self):
        self.drop()
        size = pa.MockOutputStream()
        self.write(size)
        self.block = SharedMemory(create=True, size=size.size())
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(self.block.buf))
        sink.set_memcopy_threads(2)
        self.write(sink)

    def write(self, sink):
        with pa.ipc.new_file(sink, self.table.schema) as writer:
            writer.write_table(self.table)

    def get(self):
        return self.pool.submit(open_shared, self.block.name).result()

    def drop(self):
        if self.block is not None:
            with contextlib.suppress(BufferError):  # pyarrow lets go of the buffer when it likes
                self.block.close()
            self.block.unlink()
            self.block = None

    def close(self):
        self.drop()
        self.pool.shutdown()


class Ray:
    def __init__(self, table):
        import ray

        self.ray, self.table, self.kept = ray, table, None
        ray.init(num_cpus=2, object_store_memory=4 << 30, include_dashboard=False)

        @ray.remote
        class Reader:
            def open(self, references):
                look = lambda: ray.get(references[0]).num_rows  # noqa: E731
                return *timed(look), again(look)

        self.reader = Reader.remote()

    def put(self):
        self.kept = None
        self.kept = self.ray.put(self.table)

    def get(self):
        return self.ray.get(self.reader.open.remote([self.kept]))

    def close(self):
        self.ray.shutdown()


def peers(table):
    yield Theus(table)
    yield SharedIpc(table)
    with contextlib.suppress(ImportError):
        yield Ray(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    table = make(10_000 if smoke else ROWS)
    runs = 3 if smoke else 13
    who = list(peers(table))
    puts, gets, others = [[] for _ in who], [[] for _ in who], [[] for _ in who]
    everybody = list(zip(who, puts, gets, others, strict=True))
    order = random.Random(0)  # noqa: S311 - an order, no secret
    for _ in range(runs):
        # What one leaves running or freed costs the next one time: everybody comes after everybody.
        order.shuffle(everybody)
        for peer, put, get, other in everybody:
            start = time.perf_counter()
            peer.put()
            put.append(time.perf_counter() - start)
            seconds, rows, repeat = peer.get()
            get.append(seconds)
            other.append(repeat)
            assert rows == table.num_rows
    for peer in who:
        peer.close()
    print(f"a table of {table.nbytes >> 20:,} MiB, 8 columns; the medians of {runs} rounds")
    print("who          first put, GB/s   repeat, GB/s   get in a worker, us   again, us")
    ours = statistics.median(gets[0]), statistics.median(others[0])
    for peer, put, get, other in zip(who, puts, gets, others, strict=True):
        first, repeat = table.nbytes / put[0] / 1e9, table.nbytes / statistics.median(put[1:]) / 1e9
        opened = statistics.median(get), statistics.median(other)
        name, ratios = type(peer).__name__, [a / b for a, b in zip(opened, ours, strict=True)]
        print(
            f"{name:12} {first:15.2f} {repeat:14.2f} {opened[0] * 1e6:12,.0f} ({ratios[0]:.1f} x)"
            f" {opened[1] * 1e6:8,.0f} ({ratios[1]:.1f} x)"
        )


if __name__ == "__main__":
    main()
