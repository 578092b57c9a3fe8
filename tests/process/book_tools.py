"""What tests of native workers share: the worker by the book, and programs made on the spot."""

import json
import sys
import time
from pathlib import Path

from theus import native

HERE = Path(__file__).resolve().parents[1] / "conformance"
BOOK = HERE / "by_the_book.py"
DEADLINE_S = 30


def run(engine, name, **inputs):
    """The result of a task of by_the_book.py."""
    return engine.submit(native(f"book.{name}"), **inputs).result(DEADLINE_S)


def waits_for(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def program(tmp_path, source, *, name="program", interpreter=sys.executable):
    """A script that can be executed."""
    path = tmp_path / name
    path.write_text(f"#!{interpreter}\n{source}")
    path.chmod(0o755)
    return path


def hello(**changes):
    """The source of a worker that says this of itself."""
    said = {"language": "python", "library": "none 1", "capabilities": ["plain"], "tasks": []}
    return (
        "import sys, time\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import by_the_book as book, json, os\n"
        "worker = book.Worker(json.loads(os.environ['THEUS_WORKER']))\n"
        f"said = {json.dumps(json.dumps({**said, **changes}))}.encode()\n"
        "worker.send(book.HELLO, (2, os.getpid()), (said,))\n"
        "worker.serve()\n"
    )
