"""An ordinary pandas frame as an argument: changed in the worker, returned, nothing declared."""

import numpy as np
import pandas as pd


def orders(rows=2_000_000):
    random = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "price": random.integers(100, 100_000, rows),
            "discount": random.integers(0, 11, rows),
            "shipped": np.datetime64("1994-01-01") + random.integers(0, 365, rows),
        }
    )


def add_total(frame):
    frame["total"] = frame["price"] * (100 - frame["discount"])
    return frame


def add_total_in_worker(ctx, frame):
    return add_total(frame)
