"""Contestants take turns: in rounds, in an order drawn anew for each, so that noise hits all alike.

A *group* measures some rows, which are filled by the same turns: the first ``put`` of a turn and
the repeated ones, say. A *contestant* is a context manager that starts what it needs and gives the
function that takes one turn. Everybody in a block is started before the first round, and waits
while others have their turn; a peer whose daemons work while it waits has a block of its own, with
Theus in it once more, and is compared with that.
"""

import gc
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from samples import Summary, Unit, summarise

# What a turn gives: costs by row, or by row and the variant of the contestant that took them.
Costs = dict[str | tuple[str, str], list[float]]
Turn = Callable[[], Costs]
OURS = "theus"


@dataclass(frozen=True)
class Row:
    """One line of the result: what is measured, and the figure that DESIGN sets, if it does."""

    key: str
    title: str
    unit: Unit


@dataclass(frozen=True)
class Contestant:
    """Who takes part: ``start`` is called once, in a block."""

    name: str
    start: Callable[[], AbstractContextManager[Turn]]
    block: str = "quiet"
    everywhere: bool = False  # in each block, to be compared with there


@dataclass
class Group:
    """Rows that are measured together."""

    name: str
    rows: Sequence[Row]
    contestants: Sequence[Contestant]
    rounds: int
    play: Callable[["Group", dict[str, Turn]], Iterator[tuple[str, Turn]]] = field(
        default_factory=lambda: interleaved
    )


@dataclass
class Measured:
    """One contestant's samples of one row, in one block; or why there are none."""

    row: Row
    who: str
    block: str
    samples: list[float] = field(default_factory=list)
    problem: str = ""
    raised: bool = False

    @property
    def summary(self) -> Summary:
        return summarise(self.samples)


def interleaved(group: Group, turns: dict[str, Turn]):
    """Give everybody's turns, one round after the other."""
    draw = random.Random(0)  # noqa: S311 - an order, no secret
    for _ in range(group.rounds):
        order = list(turns)  # without those that had to leave
        draw.shuffle(order)
        for name in order:
            gc.collect()
            yield name, turns[name]


def measure(group: Group) -> Iterator[Measured]:
    """Run the group block after block; give what each contestant has in each row."""
    blocks = dict.fromkeys(who.block for who in group.contestants)
    for block in blocks:
        taking_part = [who for who in group.contestants if who.everywhere or who.block == block]
        yield from _measure_block(group, block, taking_part)


def _measure_block(group: Group, block: str, taking_part: list[Contestant]) -> Iterator[Measured]:
    taken: dict[str, dict[str, list[float]]] = {row.key: {} for row in group.rows}
    raised: set[str] = set()
    with ExitStack() as stack:
        turns, problems = _start(stack, taking_part)
        rivals = [who for who in taking_part if who.name in turns and who.block == block]
        for name, turn in group.play(group, turns) if rivals else ():
            try:
                costs = turn()
            except Exception as error:  # noqa: BLE001 - the others go on
                traceback.print_exc()
                raised.add(name)
                problems[name] = f"it raised {_said(error)}"
                del turns[name]
                continue
            for what, samples in costs.items():
                key, variant = (what, name) if isinstance(what, str) else what
                taken[key].setdefault(variant, []).extend(samples)
    order = [who.name for who in taking_part]
    for row in group.rows:
        found = {name: [] for name in problems} | taken[row.key]
        for name in sorted(found, key=lambda name: _place(name, order)):
            problem = problems.get(name, "")
            yield Measured(row, name, block, found[name], problem, name in raised)


def _start(stack: ExitStack, taking_part: list[Contestant]):
    """Start everybody; return their turns, and why others have none, which only Theus must."""
    turns: dict[str, Turn] = {}
    problems: dict[str, str] = {}
    for who in taking_part:
        try:
            turns[who.name] = stack.enter_context(who.start())
        except Exception as error:
            if who.name == OURS:
                raise
            problems[who.name] = _said(error)
    return turns, problems


def _place(name: str, order: list[str]) -> tuple[int, bool, str]:
    """Return where a contestant stands, or a variant: after Theus, the floors."""
    base = name.partition(",")[0]
    return order.index(base) if base in order else 1, name != base, name


def _said(error: Exception) -> str:
    """Return the error's first line, without paths of this machine."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return " ".join(word if "/" not in word else "..." for word in text.split())[:160]
