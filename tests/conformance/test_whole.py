"""What the other files together have shown; they come before this one by their names."""

import json
from pathlib import Path

from owner import exchanged

FRAMES = Path(__file__).resolve().parents[2] / "schemas/frames.json"
NEEDED = {"SETUP": "pickle", "PARTS": "pickle"}


def test_every_kind_of_frame_was_sent_or_came(dialect):
    kinds = {kind["id"]: kind["name"] for kind in json.loads(FRAMES.read_text())["kinds"]}
    assert set(NEEDED) <= set(kinds.values())
    needed = {number for number, name in kinds.items() if NEEDED.get(name) not in dialect.lacks}
    assert set(exchanged[dialect.name]) == needed, "run the whole directory"


def test_what_was_skipped_is_what_the_dialect_declares(dialect, skips):
    assert skips[dialect.name] == dialect.lacks, "run the whole directory"
