"""What the suite has to know of each implementation: how it is started and how it is spoken to.

All else is the same for all of them, and no test asks which one it has before it.
"""

import json
import os
import pickle
import sys
from pathlib import Path

import msgspec
import numpy as np

import tasks
import theus
from theus import _theus
from theus.heavy.tables import view_arrow
from theus.serialize.message import Message
from theus.serialize.unpickler import loads

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
BOOK = Path(__file__).with_name("book.py")
RUST_WORKER = Path(os.environ.get("THEUS_CONFORMANCE") or TARGET / "release/examples/conformance")

RAISED, UNSENDABLE, UNKNOWN, INPUTS, PANICKED, STOPPED = range(6)


class Pickles:
    """Python's own worker: functions by value, and pickles.

    Attributes
    ----------
    capability : str
        The one of worker.json that its HELLO has.
    lacks : frozenset of str
        What it cannot by design: tests that need it are skipped.
    form, call : int
        Of its FUNCTION and TASK frames.
    panic_cause, inputs_cause : int
        Of the ERROR frame by which a task ends that panics, or gets other inputs.
    panic_error : type
        What a panic is to the caller of an engine.
    is_interrupted : bool
        Whether a task that is to stop gets an interrupt, beside the word in the control page.
    quotes_the_core : bool
        Whether it says of a frame that is refused what this project's core says of it.
    source : str
        The file that its tasks are in.
    no_value : bytes
        What is no value at all.
    """

    name = "python"
    capability = "pickle"
    lacks = frozenset({"plain"})
    form, call = 1, 0
    panic_cause = inputs_cause = RAISED
    panic_error = AssertionError
    is_interrupted = True
    quotes_the_core = True
    source = "tasks.py"
    no_value = b"no pickle"

    def command(self):
        return [sys.executable, "-P", "-m", "theus._worker"]

    nursed = ()
    """The command by which nursery.py starts it, or none for Python's loop in a fork."""

    def environment(self):
        return {"PYTHONPATH": os.pathsep.join(sys.path)}

    def greeting(self):
        """Return the parts of the frames that come before all others."""
        setup = {"sys_path": sys.path}
        return [(_theus.KIND_SETUP, (), (json.dumps(setup).encode(),))]

    def definition(self, name):
        return pickle.dumps(({}, pickle.dumps(tasks.TASKS[name])))

    def value(self, value):
        return pickle.dumps(value)

    def result(self, data, outputs=()):
        return loads(Message(data, outputs=outputs))

    def error(self, data):
        """Return the type and the text of what an ERROR frame describes."""
        error = pickle.loads(data)
        return type(error).__name__, str(error)

    # --- by an engine ---

    def engine(self, *domain, workers=2, **options):
        """Return an engine that has workers of this implementation."""
        return theus.TheusEngine(*domain, workers=workers, **options)

    def task(self, name):
        """Return what an engine runs under this name."""
        return tasks.TASKS[name]

    def raised(self, error):
        """Return the type and the text of an error that a task returned."""
        return type(error).__name__, str(error)


class Plain:
    """An executable in another language: functions by name, and plain values."""

    capability = "plain"
    lacks = frozenset({"pickle"})
    form, call = 3, 4
    panic_cause, inputs_cause = PANICKED, INPUTS
    panic_error = theus.NativePanicError
    is_interrupted = False
    no_value = b"\xc1"

    @property
    def nursed(self):
        return self.command()

    def environment(self):
        return {}

    def greeting(self):
        return []

    def definition(self, name):
        return json.dumps({"name": name}).encode()

    def value(self, value):
        return msgspec.msgpack.encode(value)

    def result(self, data, outputs=()):
        def take(code, payload):
            assert code == 2, f"a result has the extension {code}"
            return view(outputs[int.from_bytes(payload, "little")])

        return msgspec.msgpack.decode(data, ext_hook=take)

    def error(self, data):
        error = msgspec.msgpack.decode(data)
        return error["type"], error["message"]

    # --- by an engine ---

    def engine(self, *domain, workers=2, **options):
        engine = theus.TheusEngine(*domain, workers=workers, **options)
        path, *arguments = self.command()
        engine.native_worker(path, args=arguments, env=self.environment())
        return engine

    def task(self, name):
        return theus.native(name)

    def raised(self, error):
        assert isinstance(error, theus.NativeTaskError)
        return error.type, error.message


class Rust(Plain):
    name = "rust"
    quotes_the_core = True
    source = "conformance.rs"

    def environment(self):
        return {"RUST_BACKTRACE": "1"}  # so that a stack that nobody looks at shows by its time

    def command(self):
        if not RUST_WORKER.exists():
            raise FileNotFoundError(f"{RUST_WORKER} is not built: run make test")
        return [str(RUST_WORKER)]


class Book(Plain):
    """What `schemas/` alone let one write in an evening: no tables, and trust in its owner."""

    name = "book"
    lacks = Plain.lacks | {
        "items",
        "mappings",  # nothing stays mapped between two tasks
        "shortest values",
        "strictness",  # it takes frames and values that are cut short, and calls of other numbers
        "sweep",
        "tables",
        "types",  # it takes every tensor for one of float64
    }
    quotes_the_core = False
    source = "book.py"

    def command(self):
        return [sys.executable, "-S", "-E", str(BOOK)]


def view(segment):
    """Return what lies in a segment, as Python has it."""
    if segment.kind == "tensor":
        items = np.frombuffer(segment.buffer(), segment.element, offset=segment.body_offset)
        return items[: np.prod(segment.shape, dtype=int)].reshape(segment.shape)
    return view_arrow(segment)


DIALECTS = {dialect.name: dialect for dialect in (Pickles(), Rust(), Book())}
