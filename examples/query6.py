"""TPC-H query 6 by workers over row ranges: the columns lie in shared memory, ranges are sent."""

import itertools

import numpy as np
import pyarrow.parquet as pq

from theus import process

COLUMNS = ("l_quantity", "l_extendedprice", "l_discount", "l_shipdate")
ANSWER = 123141078.2283  # the known result at scale factor 1


def load(path):
    """Return the four columns: money in cents and discounts in percent, as integers; days."""
    table = pq.read_table(path, columns=list(COLUMNS))
    scaled = {}
    for name in COLUMNS[:3]:
        column = table[name].combine_chunks()
        # A decimal(15, 2) is a 128 bit integer of hundredths; these fit into the low half.
        words = np.frombuffer(column.buffers()[1], np.int64)
        scaled[name] = words[::2][column.offset : column.offset + len(column)].copy()
    scaled["l_shipdate"] = table["l_shipdate"].to_numpy().astype("M8[D]")
    return scaled


def revenue(quantity, price, discount, shipped):
    """Return the sum of price * discount in ten-thousandths, exactly."""
    chosen = (shipped >= np.datetime64("1994-01-01")) & (shipped < np.datetime64("1995-01-01"))
    chosen &= (discount >= 5) & (discount <= 7) & (quantity < 2400)
    return int((price[chosen] * discount[chosen]).sum())


@process(parallel=True)
def part(ctx, rows):
    start, stop = rows
    return revenue(*(ctx.heavy[name][start:stop] for name in COLUMNS))


def part_of_pickled(columns):
    return revenue(*columns)


def ranges(length, parts):
    edges = np.linspace(0, length, parts + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))
