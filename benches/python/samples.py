"""What a list of samples says. A sample is a cost: seconds, bytes or a share of a processor."""

import statistics
from dataclasses import dataclass
from typing import NamedTuple


class Summary(NamedTuple):
    """The middle, the best and the all but worst of what was measured."""

    median: float
    best: float
    p99: float
    count: int


def summarise(samples: list[float]) -> Summary:
    ordered = sorted(samples)
    # Of fewer than a hundred samples this is the worst.
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return Summary(statistics.median(ordered), ordered[0], p99, len(ordered))


@dataclass(frozen=True)
class Unit:
    """How a cost is shown: times ``scale``, or, of a rate, ``scale`` over it."""

    name: str
    scale: float
    rate: bool = False

    def shown(self, cost: float, digits: int = 3) -> str:
        if self.rate and cost == 0:
            return "-"
        value = self.scale / cost if self.rate else self.scale * cost
        whole = f"{value:,.0f}"
        if len(whole.replace(",", "")) >= digits or value == 0:
            return f"{whole} {self.name}"
        return f"{value:.{digits}g} {self.name}"


def size_name(size: int) -> str:
    for unit, name in (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


US = Unit("us", 1e6)
MS = Unit("ms", 1e3)
MIB = Unit("MiB", 1 / (1 << 20))
PERCENT = Unit("%", 100)
PER_S = Unit("/s", 1)


def gb_per_s(size: int) -> Unit:
    return Unit("GB/s", size / 1e9, rate=True)


def per_s(count: int) -> Unit:
    return Unit("/s", count, rate=True)
