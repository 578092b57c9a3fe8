"""The arrows between rooms are those that docs/architecture.md draws."""

import ast
import re
from graphlib import TopologicalSorter
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


def python_modules():
    """Return the imports of each module of the package, those for types alone too."""
    paths = {
        path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")
    }
    names = {".".join(parts) for parts in paths.values()}
    modules = {}
    for path, parts in paths.items():
        uses = modules[".".join(parts)] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("theus"):
                continue
            home = node.module.removeprefix("theus").removeprefix(".")
            for alias in node.names:
                full = f"{home}.{alias.name}".removeprefix(".")
                uses.update({full, home} & names)
    return modules


def python_rooms():
    """Return the arrows between packages, and modules that lie beside them."""
    rooms = {}
    for module, uses in python_modules().items():
        room = module.partition(".")[0]
        found = {use.partition(".")[0] for use in uses}
        rooms.setdefault(room, set()).update(found - {room})
    del rooms["__init__"]  # the public names: nothing imports it
    return rooms


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


def test_no_module_of_the_package_leads_back_to_itself():
    modules = python_modules()
    assert len(modules) > 50
    assert sum(map(len, modules.values())) > 150
    order = TopologicalSorter(modules).static_order()  # a circle is an error that shows it
    assert set(order) == modules.keys()


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
