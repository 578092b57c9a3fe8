"""The result of a run as plain data, in JSON: every sample is in it, nothing is only in a table."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rounds import OURS, Measured
from samples import Summary, Unit, summarise

PLACE = Path(__file__).resolve().parent.parent / "results"
# Whom a row is about, if it is not Theus as it is used most: nobody's rival.
_OURS_OTHERWISE = ("theus", "stock")


@dataclass
class Line:
    """One contestant in one row; ``times`` is its cost over that of Theus in the same block."""

    who: str
    block: str
    samples: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def summary(self) -> Summary:
        return summarise(self.samples)

    @property
    def is_floor(self) -> bool:
        return self.who.startswith("floor")

    @property
    def is_ours(self) -> bool:
        return self.who.startswith(_OURS_OTHERWISE)

    @property
    def is_peer(self) -> bool:
        return not self.is_ours and not self.is_floor


@dataclass
class RowResult:
    key: str
    title: str
    unit: Unit
    lines: list[Line] = field(default_factory=list)

    def ours(self, block: str = "quiet") -> Line | None:
        for line in self.lines:
            if line.who == OURS and line.block == block and line.samples:
                return line
        return None

    def times(self, line: Line) -> float | None:
        """Return the line's median cost over that of Theus, measured in the same rounds."""
        ours = self.ours(line.block)
        if ours is None or not line.samples or ours.summary.median == 0:
            return None
        return line.summary.median / ours.summary.median

    def shown(self) -> list[Line]:
        """Return the lines, but not those of later blocks that only repeat one of the first."""
        seen: set[str] = set()
        kept = []
        for line in self.lines:
            if line.who not in seen:
                kept.append(line)
            seen.add(line.who)
        return kept

    def peers(self) -> list[tuple[Line, float]]:
        """Return the peers that ran, the best of them first."""
        found = [(line, self.times(line)) for line in self.shown() if line.is_peer]
        ran = [(line, times) for line, times in found if times is not None]
        return sorted(ran, key=lambda pair: pair[1])


@dataclass
class Result:
    machine: dict
    rows: dict[str, RowResult] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        row = measured.row
        result = self.rows.setdefault(row.key, RowResult(row.key, row.title, row.unit))
        line = Line(measured.who, measured.block, measured.samples, measured.problem)
        result.lines.append(line)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for row in self.rows.values():
            for line in row.lines:
                line.samples = [float(f"{sample:.6g}") for sample in line.samples]
        machine = json.dumps(self.machine, indent=1)
        # A line for each row, so that a change of the file says which ones moved.
        rows = ",\n".join(json.dumps(asdict(row)) for row in self.rows.values())
        path.write_text(f'{{"machine": {machine},\n"rows": [\n{rows}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> "Result":
        data = json.loads(path.read_text())
        rows = [
            row | {"unit": Unit(**row["unit"]), "lines": [Line(**line) for line in row["lines"]]}
            for row in data["rows"]
        ]
        return cls(data["machine"], {row["key"]: RowResult(**row) for row in rows})
