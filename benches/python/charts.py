"""Figures in one style, as SVG and PNG, readable on light and on dark backgrounds.

The background is left out, and every colour is a middle one that stands at least 3 : 1, text
4 : 1, against white as against a dark page's near-black.

    with charts.styled():
        figure, axes = charts.figure("sum of 1 GiB", "workers", "seconds")
        charts.line(axes, workers, seconds, "theus")
        charts.save(figure, Path("target/scale"))   # target/scale.svg and target/scale.png
"""

import re
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#768089"
FAINT = "#8b949e55"
# Theus is the one saturated colour; a floor is what nobody can beat, drawn in the ink. Those that
# are in many figures have the same colour and mark in all; by the first word of their names.
COLOURS = {
    "theus": "#e0601f",
    "floor": INK,
    "processpoolexecutor": "#2f81c9",
    "shared_memory": "#3a9157",
    "joblib": "#a371c9",
    "ray": "#a68a1f",
    "dask": "#c9587a",
    "one": "#2f9a9a",
}
OTHERS = ["#8a7a66", "#2f81c9", "#3a9157", "#a371c9", "#a68a1f", "#c9587a", "#2f9a9a"]
MARKERS = "osD^vP*X"

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 10.5,
    "grid.color": FAINT,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "savefig.transparent": True,
    "svg.hashsalt": "theus",  # the same figures give the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled():
    """Draw in the style of this project, without a display, while inside."""
    mpl.use("agg")
    with mpl.rc_context(_STYLE):
        yield


def figure(
    title: str, across: str = "", up: str = "", *, size: tuple[float, float] = (8, 4.5)
) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, titled and labelled."""
    made = Figure(figsize=size)
    axes = made.subplots()
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return made, axes


def panels(title: str, count: int, *, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many pairs of axes, two in a row."""
    made = Figure(figsize=size)
    made.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    axes = made.subplots((count + 1) // 2, 2).flatten()
    for spare in axes[count:]:
        spare.remove()
    return made, list(axes[:count])


def colour(name: str, number: int = 0) -> str:
    """Return a contestant's own colour, by the first word of its name, or else the number-th."""
    return COLOURS.get(_first_word(name), OTHERS[number % len(OTHERS)])


def marker(name: str, number: int = 0) -> str:
    """Return a contestant's own mark, or else the number-th."""
    known = list(COLOURS)
    first = _first_word(name)
    return MARKERS[(known.index(first) if first in known else number) % len(MARKERS)]


def _first_word(name: str) -> str:
    return re.match(r"\w*", name)[0].lower()


def line(axes: Axes, across, up, name: str, number: int = 0, **options) -> None:
    """Draw one contestant's points, joined; a floor is dashed and has no marks."""
    if name.startswith("floor"):
        options = {"linestyle": "--", **options}
    else:
        options = {"marker": marker(name, number), **options}
    axes.plot(across, up, color=colour(name, number), label=name, **options)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.svg and ``stem``.png; return both paths. Inside ``styled()``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    for path in written:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=160, metadata=metadata)
    return written
