"""TPC-H query 1 by workers over parts of lineitem: by DuckDB, by numpy, and by a task in Rust."""

from decimal import Decimal

import duckdb
import numpy as np

from theus import native, process

RUST = native("tasks.query1")  # examples/native-worker/src/query1.rs
QUERY = """
    select l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice),
        sum(l_extendedprice * (1 - l_discount)),
        sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)), sum(l_discount), count(*)
    from lineitem where l_shipdate <= date '1998-12-01' - interval 90 day group by all"""
ANSWERS = {  # at scale factor 1: all but the discounts, of which the query asks the average
    "AF": "37734107.00 56586554400.73 53758257134.8700 55909065222.827692 1478493",
    "NF": "991417.00 1487504710.38 1413082168.0541 1469649223.194375 38854",
    "NO": "74476040.00 111701729697.74 106118230307.6056 110367043872.497010 2920374",
    "RF": "37719753.00 56568041380.90 53741292684.6040 55889619119.831932 1478870",
}


@process(parallel=True)
def by_duckdb(ctx, lineitem):
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("lineitem", lineitem)
        return connection.sql(QUERY).fetchall()


def units(column):
    """Return a decimal(15, 2) column's hundredths: the low halves of integers of 128 bits."""
    words = [np.frombuffer(chunk.buffers()[1], np.int64)[::2] for chunk in column.chunks]
    shown = zip(words, column.chunks, strict=True)
    return np.concatenate([w[c.offset : c.offset + len(c)] for w, c in shown])


@process(parallel=True)
def by_numpy(ctx, lineitem):
    shipped = lineitem["l_shipdate"].to_numpy()
    quantity, price, discount, tax = (
        units(lineitem[f"l_{name}"]) for name in ("quantity", "extendedprice", "discount", "tax")
    )
    discounted = price * (100 - discount)
    charged = discounted * (100 + tax)
    summed = (quantity, 2), (price, 2), (discounted, 4), (charged, 6), (discount, 2)
    keys = [lineitem[f"l_{name}"].to_numpy().astype("S1") for name in ("returnflag", "linestatus")]
    groups = []
    for flag in np.unique(keys[0]):
        for status in np.unique(keys[1]):
            chosen = (keys[0] == flag) & (keys[1] == status)
            chosen &= shipped <= np.datetime64("1998-09-02")
            sums = [Decimal(int(v[chosen].sum())).scaleb(-decimals) for v, decimals in summed]
            groups.append((flag.decode(), status.decode(), *sums, int(chosen.sum())))
    return groups


def total(parts):
    """Return the sums of all parts, by group; those in Rust's are decimal texts."""
    groups = {}
    for row in (row for part in parts for row in part):
        flag, status, *sums = row.values() if isinstance(row, dict) else row
        so_far = groups.setdefault(flag + status, [Decimal(0)] * len(sums))
        groups[flag + status] = [a + Decimal(b) for a, b in zip(so_far, sums, strict=True)]
    return {key: sums for key, sums in sorted(groups.items()) if sums[-1]}


def shown(groups):
    """Return what the answers have of each group."""
    return {key: " ".join(map(str, (*sums[:4], sums[-1]))) for key, sums in groups.items()}
