"""TPC-H queries 1, 6 and 12 by DuckDB, in workers, over tables that lie in the heavy zone once."""

import re
import subprocess
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from theus import process

LINEITEM = [
    "l_orderkey",
    "l_quantity",
    "l_extendedprice",
    "l_discount",
    "l_tax",
    "l_returnflag",
    "l_linestatus",
    "l_shipdate",
    "l_commitdate",
    "l_receiptdate",
    "l_shipmode",
]
ORDERS = ["o_orderkey", "o_orderpriority", "o_totalprice"]

QUERIES = {
    "query 1": """
        select l_returnflag, l_linestatus, sum(l_quantity)::varchar, count(*)
        from lineitem where l_shipdate <= date '1998-12-01' - interval 90 day
        group by all order by all""",
    "query 6": """
        select sum(l_extendedprice * l_discount)::varchar from lineitem
        where l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01'
        and l_discount between 0.05 and 0.07 and l_quantity < 24""",
    "query 12, a join": """
        select l_shipmode,
            sum(case when o_orderpriority in ('1-URGENT', '2-HIGH') then 1 else 0 end)::int,
            sum(case when o_orderpriority not in ('1-URGENT', '2-HIGH') then 1 else 0 end)::int
        from orders join lineitem on o_orderkey = l_orderkey
        where l_shipmode in ('MAIL', 'SHIP') and l_commitdate < l_receiptdate
        and l_shipdate < l_commitdate and l_receiptdate >= date '1994-01-01'
        and l_receiptdate < date '1995-01-01'
        group by all order by all""",
}

# The known results at scale factor 1.
ANSWERS = {
    "query 1": [
        ("A", "F", "37734107.00", 1478493),
        ("N", "F", "991417.00", 38854),
        ("N", "O", "74476040.00", 2920374),
        ("R", "F", "37719753.00", 1478870),
    ],
    "query 6": [("123141078.2283",)],
    "query 12, a join": [("MAIL", 6202, 9324), ("SHIP", 6200, 9262)],
}


def load(directory):
    """Return lineitem and orders, the columns that the queries read."""
    return {
        "lineitem": pq.read_table(directory / "lineitem.parquet", columns=LINEITEM),
        "orders": pq.read_table(directory / "orders.parquet", columns=ORDERS),
    }


@process(parallel=True)
def ask(ctx, query):
    with duckdb.connect(config={"threads": 1}) as connection:
        for name in ("lineitem", "orders"):
            connection.register(name, ctx.heavy[name])
        return connection.sql(query).fetchall()


def ask_of_pickled(tables, query):
    with duckdb.connect(config={"threads": 1}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(query).fetchall()


@process(parallel=True)
def total_by_pandas(ctx):
    return float(ctx.heavy.pandas("orders")["o_totalprice"].sum())


@process(parallel=True)
def total_by_polars(ctx):
    return float(ctx.heavy.polars("orders")["o_totalprice"].sum())


def total_by_rust(program, session):
    """Have a Rust program, which knows the session's name alone, sum the column."""
    command = [program, session, "orders"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(dict(line.rsplit(" ", 1) for line in lines.splitlines())["o_totalprice"])


def resident(pids, paths):
    """Return the bytes of these segments that processes have in memory, each page counted once."""
    total = 0
    for pid in pids:
        regions = re.split(
            r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE
        )
        shared = (region for region in regions if region.partition("\n")[0].endswith(paths))
        total += sum(int(re.search(r"^Pss: +(\d+)", region, re.MULTILINE)[1]) for region in shared)
    return total * 1024
