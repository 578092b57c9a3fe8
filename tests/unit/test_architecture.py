"""The arrows between rooms: what may import what."""

import ast
from pathlib import Path

import theus

PACKAGE = Path(theus.__file__).parent
ALLOWED = {
    "engine": {
        "context",
        "contracts",
        "dispatcher",
        "functions",
        "heavy",
        "results",
        "state",
        "tasks",
        "wire",
    },
    "results": {"tasks"},
    "dispatcher": {"functions", "tasks", "wire", "worker_process"},
    "worker_process": {"functions", "state", "tasks"},
    "tasks": {"functions", "state", "wire"},
    "functions": {"wire"},
    "heavy": {"array", "entry", "state"},
    "state": {"entry", "wire"},
    "entry": {"array"},
    "wire": {"array"},
    "array": set(),
    "segments": {"array"},
    "context": {"entry"},
    "contracts": set(),
    "errors": set(),
    "_worker": {"array", "context", "contracts", "entry", "functions", "wire"},
}
EVERYWHERE = {"errors", "_theus"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "theus":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("theus."):
                yield node.module.removeprefix("theus.")


def test_rooms_import_only_what_the_arrows_allow():
    arrows = 0
    rooms = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert rooms.keys() == ALLOWED.keys()
    for room, path in rooms.items():
        found = set(imports(path)) - EVERYWHERE
        assert found <= ALLOWED[room], (room, found - ALLOWED[room])
        assert "engine" not in found
        arrows += len(found)
    assert arrows > 20
