"""The user guide's code blocks run as they are printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "docs/user-guide.md", ROOT.parent / "shared/zero-copy-parallelism.md"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_the_guide_runs(guide, python):
    if not guide.exists():
        pytest.skip(f"{guide.name} is not beside this checkout")
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    # As `python -m asyncio` compiles what is pasted into it: await at the top level.
    done = python(
        "import ast, asyncio, inspect, types\n"
        f"blocks = {blocks!r}\n"
        "async def main():\n"
        "    import __main__\n"
        "    for block in blocks:\n"
        "        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT\n"
        "        code = compile(block, '<guide>', 'exec', flags=flags)\n"
        "        result = types.FunctionType(code, vars(__main__))()\n"
        "        if inspect.isawaitable(result):\n"
        "            await result\n"
        "asyncio.run(main())\n",
        timeout=110,
    )
    assert "Determinant:" in done.stdout
