"""The arrows between rooms are those that docs/architecture.md draws."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "python" / "theus"
CRATE = ROOT / "rust" / "theus" / "src"
BLOCK = re.compile(r"^```arrows\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def drawn():
    for block in BLOCK.findall((ROOT / "docs" / "architecture.md").read_text()):
        lines = (line.split(":") for line in block.splitlines())
        yield {room: set(uses.split()) for room, uses in lines}


def python_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "theus":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("theus."):
                yield node.module.removeprefix("theus.")


def python_rooms():
    everywhere = {"errors", "_theus"}
    rooms = {path.stem: path for path in PACKAGE.glob("*.py")}
    return {
        room: set(python_imports(path)) - everywhere
        for room, path in rooms.items()
        if room not in {"__init__", *everywhere}
    }


def rust_rooms():
    everywhere = {"error", "kill_point"}
    rooms = {}
    for path in CRATE.rglob("*.rs"):
        room = path.relative_to(CRATE).parts[0].removesuffix(".rs")
        if room not in {"lib", *everywhere}:
            uses = set(re.findall(r"\bcrate::([a-z]\w*)", path.read_text()))
            rooms.setdefault(room, set()).update(uses - {room, *everywhere})
    return rooms


@pytest.mark.parametrize(("language", "rooms"), [(0, python_rooms()), (1, rust_rooms())])
def test_the_arrows_are_those_that_are_drawn(language, rooms):
    arrows = list(drawn())[language]
    assert rooms == arrows
    order = list(arrows)
    for room, uses in arrows.items():
        assert all(order.index(room) < order.index(used) for used in uses), room


def test_the_binding_uses_only_the_public_crate():
    names = {path.stem for path in CRATE.iterdir()} - {"lib"}
    library = (CRATE / "lib.rs").read_text()
    public = set(re.findall(r"^pub mod (\w+);", library, re.MULTILINE))
    binding = ROOT / "rust" / "theus-python" / "src"
    used = {
        module
        for path in binding.glob("*.rs")
        for module in re.findall(r"\btheus::([a-z]\w*)", path.read_text())
        if module in names
    }
    assert used
    assert used <= public
