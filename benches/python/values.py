"""Round trips of plain values, there and back: Theus beside ProcessPoolExecutor and joblib.

``--smoke`` runs small sizes a few times, to see that it works; its figures mean nothing.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import joblib
import numpy as np
import pandas as pd

from tasks import echo, echo_plain
from theus import TheusEngine

SIZES = [1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30]


def frame(size):
    return pd.DataFrame(np.ones((max(1, size // 32), 4)), columns=list("abcd"))


def interleaved(works, runs):
    """Return each work's median: one after another in every round, so that noise hits all."""
    samples = [[] for _ in works]
    for _ in range(runs):
        for work, taken in zip(works, samples, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in samples]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    sizes = SIZES[:4] if smoke else SIZES  # the last two take a minute
    print("value          KiB     theus, us  ProcessPoolExecutor and joblib against it")
    with (
        TheusEngine(workers=1) as engine,
        ProcessPoolExecutor(1) as pool,
        joblib.Parallel(n_jobs=2, mmap_mode="r") as parallel,
    ):
        for kind, make in [("ndarray", lambda size: np.ones(size, np.uint8)), ("pandas", frame)]:
            for size in sizes:
                value = make(size)
                works = [
                    lambda value=value: engine.submit(echo, item=value).result(),
                    lambda value=value: pool.submit(echo_plain, value).result(),
                    lambda value=value: parallel([joblib.delayed(echo_plain)(value)]),
                ]
                for work in works:
                    work()
                runs = 3 if smoke else max(3, min(100, (128 << 20) // size))
                ours, *theirs = interleaved(works, runs)
                ratios = [f"{other / ours:.2f} x" for other in theirs]
                print(f"{kind:8} {size >> 10:>9,} {ours * 1e6:>12,.0f} {'  '.join(ratios)}")


if __name__ == "__main__":
    main()
