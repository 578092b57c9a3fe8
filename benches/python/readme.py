"""The figures in README.md, rewritten from the last result; ``--check`` only compares."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from machine import sentence
from report import ratio_text
from results import PLACE, Result, RowResult
from samples import size_name

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
# What tells most; every row is in the whole result.
_SHOWN = [
    "no-op", "native-no-op", "in-flight", "native-query1", "there-1048576",
    "attach-cold-1073741824", "attach-warm-1073741824",
    "put-first", "put-repeat", "table-repeat", "table-get", "sum-warm", "sum-first", "memory",
    "script",
]  # fmt: skip
_POOL = "ProcessPoolExecutor"
_SENT = "there-"


def block(result: Result) -> str:
    """Return what stands between the marks."""
    lines = [
        "| | Theus | floor | others: how many times the cost of Theus |",
        "|---|--:|--:|---|",
        *(_line(result.rows[key]) for key in _SHOWN if key in result.rows),
        "",
        "The floor is what the system calls or copies of that row take by themselves.",
        *_losses(result),
        "",
        *_crossover(result),
        "",
        "![Costs of the others over those of Theus](benches/results/overview.svg)",
        "",
        f"{sentence(result.machine)}.",
        "[Every row](benches/results/latest.md), [how it is measured](benches/README.md).",
    ]
    return "\n".join(lines)


def _line(row: RowResult) -> str:
    ours = row.ours()
    figure = row.unit.shown(ours.summary.median) if ours else "-"
    floors = (line for line in row.lines if line.is_floor and line.samples)
    floor = next((row.unit.shown(line.summary.median) for line in floors), "")
    others = "; ".join(
        f"{line.who} **{ratio_text(times)}**"
        if _is_loss(times)
        else f"{line.who} {ratio_text(times)}"
        for line, times in row.peers()
    )
    return f"| {row.title} | {figure} | {floor} | {others} |"


def _losses(result: Result) -> list[str]:
    """Return a sentence for each row in which somebody else's cost is below that of Theus."""
    lost = []
    for row in result.rows.values():
        better = [
            f"{line.who} ({ratio_text(times)})" for line, times in row.peers() if _is_loss(times)
        ]
        if better:
            lost.append(f"- {row.title}: {', '.join(better)}.")
    if not lost:
        return ["No other one was better in any row."]
    return ["Others are better, their cost below that of Theus, at:", "", *lost]


def _is_loss(times: float) -> bool:
    """Return whether the other's cost is lower, by what two digits show."""
    return round(times, 2) < 1


def _crossover(result: Result) -> list[str]:
    """Return from which size on a task's input travels faster than by the standard library."""
    sizes = {}
    for key, row in result.rows.items():
        pool = [times for line, times in row.peers() if line.who == _POOL]
        if key.startswith(_SENT) and pool:
            sizes[int(key.removeprefix(_SENT))] = pool[0]
    if not sizes:
        return []
    lost = [size for size, times in sizes.items() if _is_loss(times)]
    if not lost:
        span = f"from {size_name(min(sizes))} to {size_name(max(sizes))}"
        return [
            f"An array sent with a task is faster by Theus than by {_POOL} at every size {span}."
        ]
    above = [size for size in sizes if size > max(lost)]
    faster = f"from {size_name(min(above))} on" if above else "at no size"
    return [f"An array sent with a task is faster by Theus than by {_POOL} {faster}."]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    text = README.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"README.md has no {BEGIN} and {END}")
    made = f"{before}{BEGIN}\n\n{block(Result.load(PLACE / 'latest.json'))}\n\n{END}{after}"
    if not chosen.check:
        README.write_text(made)
    elif made != text:
        sys.exit(
            "README.md does not show benches/results/latest.json: python benches/python/readme.py"
        )


if __name__ == "__main__":
    main()
