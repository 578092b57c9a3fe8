"""Pickling for workers: handles for what lies in segments, one nameless segment for what is large.

The pickler is cloudpickle's, so lambdas and classes of ``__main__`` travel, with two rules before
its own: an ndarray whose bytes lie in a published segment becomes a handle, and large buffers leave
the pickle. What is large then moves with one copy; what is small goes through the socket.
"""

from __future__ import annotations

import mmap
import pickle
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

from theus import _theus
from theus._theus import Output, Transient
from theus.errors import HeavyZoneFullError, UnpicklableError
from theus.heavy import copies
from theus.heavy.array import Handle, ShmArray, handle_of
from theus.heavy.tables import find_part
from theus.serialize.message import PROTOCOL, Message, Outputs, Pins, pickle_small
from theus.serialize.reducers import LIBRARIES, OUT_OF_BAND_BYTES, reduce_array, reduce_other
from theus.serialize.unpickler import OUTPUT, load_array, load_array_as, load_buffer, load_part
from theus.serialize.value_path import find_culprit, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from theus._theus import Segment

__all__ = ["dumps"]

_HANDLE_BYTES = 256  # a smaller buffer is as cheap as its handle
_PIECE_BYTES = 1 << 20


class _Chunks:
    """A file for the pickler: keeps what is written, and large bytes objects are not copied."""

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.length = 0

    def write(self, chunk: bytes | bytearray | pickle.PickleBuffer) -> int:
        piece = chunk if type(chunk) is bytes else memoryview(chunk).cast("B")
        self.chunks.append(piece)
        self.length += len(piece)
        return len(piece)


class _Buffers:
    """Takes large buffers out of the pickle; a true answer leaves one in."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        self.buffers.append(raw)
        return False


class _Pickler(cloudpickle.Pickler):
    def __init__(
        self,
        file: _Chunks,
        pin: Callable[[str], object | None],
        modules: set[str | None] | None,
        *,
        made: Outputs | None = None,
    ) -> None:
        # A method for a callback would make a cycle, and hold what is pinned until a collection.
        taken = _Buffers()
        super().__init__(file, protocol=PROTOCOL, buffer_callback=taken)
        self.pins: Pins = []
        self.buffers = taken.buffers
        self.strided: dict[int, np.ndarray[Any, Any]] = {}
        self.outputs: list[Output] = []
        self._made = made
        self._pin = pin
        self._modules = modules

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            reduced = self._reduce_array(obj)
            if reduced is not None:
                return reduced
        elif isinstance(obj, FunctionType | type | ModuleType):
            if self._modules is not None:
                name = obj.__name__ if isinstance(obj, ModuleType) else obj.__module__
                self._modules.add(name)
        else:
            library = type(obj).__module__.partition(".")[0]
            if library in LIBRARIES:
                reduced = self._reduce_arrow(obj) if library == "pyarrow" else None
                reduced = reduced or reduce_other(library, obj, self._lies_in_segment)
                if reduced is not None:
                    return reduced
        return super().reducer_override(obj)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        if type(array).__reduce__ is not np.ndarray.__reduce__:  # it knows better what it is
            return reduce_array(array, self._room_for)
        handle = handle_of(array)
        pin = None if handle is None else self._pin(handle[0])
        if pin is None:
            found = None if self._made is None else self._made.locate(array)
            if found is not None:
                output, place = found
                return self._reduce_view(array, (self._number(output), *place[1:]))
            plain = array.view(np.ndarray) if isinstance(array, ShmArray) else array
            reduced = reduce_array(plain, self._room_for)
            if reduced is not None:
                return reduced
            return None if plain is array else plain.__reduce_ex__(PROTOCOL)
        self.pins.append(pin)
        return self._reduce_view(array, handle)

    def _reduce_view(self, array: np.ndarray[Any, Any], handle: Handle | None) -> Any:
        kind = type(array)
        if kind is ShmArray:
            return load_array, (handle,)
        state = getattr(array, "__dict__", None)
        return load_array_as, (handle, kind, state) if state else (handle, kind)

    # --- Arrow data in segments ---

    def _reduce_arrow(self, value: Any) -> Any:
        """Reduce a part of a segment's table, or a buffer in a segment, to a handle."""
        part = find_part(value, self._hold)
        if part is not None:
            held, part, schema = part
            return load_part, (self._name(held), part, schema)
        if type(value).__name__ != "Buffer" or value.size < _HANDLE_BYTES:
            return None
        held = self._hold(value.address, value.size)
        if held is None:
            return None
        # A segment may be mapped here more than once: by whom it was written, or opened by path.
        found = None if isinstance(held, Output) else _theus.locate(value.address, value.size)
        offset = value.address - held.buffer().address if found is None else found[1]
        return load_buffer, (self._name(held), offset, value.size)

    def _hold(self, address: int, nbytes: int) -> Segment | Output | None:
        """Return what holds all of these bytes, if it can be promised to the receiver."""
        found = _theus.locate(address, nbytes)
        pin: Any = None if found is None else self._pin(found[0])
        if pin is None and self._made is not None:
            return self._made.holder(address, nbytes)
        return pin

    def _lies_in_segment(self, address: int, nbytes: int) -> bool:
        return self._hold(address, nbytes) is not None

    def _name(self, held: Segment | Output) -> str:
        """Return how the message refers to it, which keeps it."""
        if isinstance(held, Output):
            return self._number(held)
        self.pins.append(held)
        return held.name

    def _number(self, output: Output) -> str:
        """Return what stands for the output's name, which it gets only when its owner has it."""
        if output not in self.outputs:
            self.outputs.append(output)
        return f"{OUTPUT}{self.outputs.index(output)}"

    def _room_for(self, source: np.ndarray[Any, Any]) -> pickle.PickleBuffer:
        # Memory that is never touched stands for the bytes until they have their place.
        try:
            room = mmap.mmap(-1, source.nbytes)
        except (OSError, OverflowError) as error:
            raise MemoryError from error
        self.strided[_address(memoryview(room))] = source
        return pickle.PickleBuffer(room)


def _address(raw: memoryview) -> int:
    return np.frombuffer(raw, np.uint8).__array_interface__["data"][0]


def dumps(
    obj: object,
    pin: Callable[[str], object | None],
    *,
    label: str,
    modules: set[str | None] | None = None,
    made: Outputs | None = None,
    spill_dir: Path | None = None,
) -> Message:
    """Pickle `obj` for another process of this engine.

    Parameters
    ----------
    obj : object
        Anything cloudpickle can send, with arrays of the heavy zone anywhere inside.
    pin : callable
        Given a segment's name, returns what keeps that name alive, or None if the segment cannot
        be promised to the receiver; the array then goes by value.
    label : str
        What `obj` is, as the root of the path in an error message.
    modules : set of str, optional
        Collects the names of the modules the pickle refers to.
    made : Outputs, optional
        Where the arrays that a task made in place are found.
    spill_dir : pathlib.Path, optional
        Where large buffers go that do not fit in memory.

    Returns
    -------
    Message
        An array of the heavy zone takes a few hundred bytes of it, whatever its size. Large buffers
        were copied, once and in parallel, to one nameless segment.

    Raises
    ------
    UnpicklableError
        Naming the path from `label` to the value that could not be pickled.
    HeavyZoneFullError
        If the large buffers do not fit into shared memory, or memory at all.
    """
    data = pickle_small(obj)
    if data is not None:
        return Message(data)
    file = _Chunks()
    pickler = _Pickler(file, pin, modules, made=made)
    try:
        pickler.dump(obj)
    except MemoryError as error:
        msg = (
            f"{label} is larger than the memory there is: send a part, or put it in the heavy zone"
        )
        raise HeavyZoneFullError(msg) from error
    except Exception as error:

        def send(part: object) -> None:
            _Pickler(_Chunks(), pin, None).dump(part)

        path, culprit, reason = find_culprit(obj, label, send, error, parts_of)
        msg = (
            f"{path} cannot be sent to another process: {reason}. "
            f"It is a {type(culprit).__module__}.{type(culprit).__qualname__}; "
            "send plain data instead, and open files, locks and connections inside the function"
        )
        raise UnpicklableError(msg) from error
    if not pickler.buffers and file.length < OUT_OF_BAND_BYTES:
        data, parts = b"".join(file.chunks), None
    else:
        data, parts = b"", _fill(file.chunks, pickler, label, spill_dir)
    return Message(data, parts, pickler.pins, pickler.outputs)


def _fill(
    pickle_chunks: list[bytes | memoryview],
    pickler: _Pickler,
    label: str,
    spill_dir: Path | None,
) -> Transient:
    strided = [pickler.strided.get(_address(raw)) for raw in pickler.buffers]
    buffers = [
        raw if source is None else raw.nbytes
        for raw, source in zip(pickler.buffers, strided, strict=True)
    ]
    nbytes = sum(map(len, pickle_chunks)) + sum(raw.nbytes for raw in pickler.buffers)
    copies.spend(label, None, nbytes, "it is a large value outside the heavy zone")
    parts = Transient.create(pickle_chunks, buffers, label, spill_dir)
    for (offset, _), source in zip(parts.parts[1:], strided, strict=True):
        if source is not None:
            _write_strided(parts, offset, source)
    return parts


def _write_strided(parts: Transient, offset: int, source: np.ndarray[Any, Any]) -> None:
    """Write the items in C order, gathered by pieces that stay in the cache."""
    pieces = np.nditer(
        source,
        flags=["external_loop", "buffered", "zerosize_ok"],
        order="C",
        buffersize=max(1, _PIECE_BYTES // source.itemsize),
    )
    for piece in pieces:
        data: Any = np.ascontiguousarray(piece).view(np.uint8)
        parts.write(offset, data)
        offset += data.nbytes
