"""What the benches run in workers; importable, as the tasks of a program are."""

from theus import process


@process(parallel=True)
def nothing(ctx):
    return None


def nothing_plain():
    return None


@process(parallel=True)
def echo(ctx, item):
    return item


def echo_plain(item):
    return item


@process(parallel=True)
def part_sum(ctx, item):
    start, stop = item
    return float(ctx.heavy["x"][start:stop].sum())
