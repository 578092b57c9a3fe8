"""The heavy zone: managed shared memory under names, ``engine.heavy``.

An entry is written until it is published and never again after. ``alloc`` makes drafts, which only
this process sees; ``put``, ``seal`` and the engine's ``compare_and_swap`` publish.

Over 450 lines, as its docstrings are the reference of the public methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, overload
from weakref import ref

import numpy as np

from theus import _theus
from theus.engine.drafts import Draft
from theus.engine.entry_lookup import EntryLookup
from theus.heavy import array, copies, put, tensors
from theus.heavy.array import ShmArray, view_segment
from theus.heavy.entry import Entry, FrameViews, find_entry
from theus.heavy.table_draft import TableDraft, check_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

    from theus._theus import Segment, Session
    from theus.state.snapshot import State
    from theus.state.store import StateStore

__all__ = ["HeavyStats", "HeavyZone"]

Array = np.ndarray[Any, Any]

_MAPPED_BYTES = 1 << 20
_LARGE_BYTES = 64 << 20  # writing as many takes a good part of the time that a worker's start does


class _Watched(ref[_theus.Segment]):
    """A reference that knows whose it was."""

    __slots__ = ("number",)

    number: int

    def __new__(cls, segment: Segment, gone: Callable[[_Watched], None]) -> Self:
        made = super().__new__(cls, segment, gone)
        made.number = segment.number
        return made


class HeavyStats(TypedDict):
    """What :meth:`HeavyZone.stats` reports; sizes are bytes of shared memory."""

    session: str
    entries: int
    drafts: int
    published_bytes: int
    draft_bytes: int
    pinned_bytes: int
    used_bytes: int
    limit_bytes: int | None
    spilled_bytes: int
    ready_bytes: int


class HeavyZone(FrameViews):
    """Named arrays and tables in managed shared memory.

    As a mapping it shows the published entries of the engine's current state, read-only, and the
    drafts of names that were not published yet, writable. Names are removed automatically; nothing
    has to be unlinked.

    Examples
    --------
    >>> from theus import TheusEngine
    >>> with TheusEngine() as engine:
    ...     squares = engine.heavy.alloc("squares", shape=4, dtype="i8")
    ...     squares[:] = np.arange(4) ** 2
    ...     sealed = engine.heavy.seal("squares")
    >>> sealed.tolist(), sealed.flags.writeable
    ([0, 1, 4, 9], False)
    """

    def __init__(self, session: Session, store: StateStore) -> None:
        self._session = session
        self._store = store
        self.released: Callable[[int], None] | None = None
        self.grown: Callable[[], None] | None = None
        self.published: Callable[[State], None] | None = None
        self._drafts: dict[str, Draft] = {}
        self._lookup = EntryLookup(store, self._drafts, self.pin)
        self._watched: dict[int, _Watched] = {}

        def gone(watched: _Watched) -> None:
            self._watched.pop(watched.number, None)
            if self.released is not None:
                self.released(watched.number)

        # One for all: what the garbage collector has to look at counts, when there are many.
        self._gone = gone

    # --- making entries ---

    def alloc(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = np.float64,
        order: Literal["C", "F"] = "C",
        *,
        mutable: bool = False,
    ) -> ShmArray:
        """Allocate a zero-filled array to be written in place.

        Parameters
        ----------
        name : str
            The entry's name, up to 216 bytes of UTF-8. An existing entry of that name is replaced
            when this one is published, not before.
        shape : int or tuple of int
            Items in each dimension; ``()`` is a single value.
        dtype : dtype_like, default float64
            Any numpy dtype without Python objects.
        order : {"C", "F"}, default "C"
            Row-major or column-major.
        mutable : bool, default False
            Publish at once and never seal: workers read while this process goes on writing. Such
            an entry is outside the promise of snapshots, and readers may see half a write.

        Returns
        -------
        ShmArray
            Writable until it is published by ``seal``, ``compare_and_swap`` or by being put into a
            state. It is the shared memory itself; nothing is copied later.

        Raises
        ------
        HeavyZoneFullError
            If the space cannot be reserved; nothing is left behind.
        UnsupportedDtypeError
            If `dtype` holds Python objects.

        Notes
        -----
        A write that arrives after publication, through a view made before it, goes to a private
        copy of the page: it neither crashes nor reaches a reader.
        """
        create = self._session.create_tensor
        segment = tensors.allocate(create, name, shape, dtype, order, mutable=mutable)
        self._expect_tasks(segment.length_bytes)
        self.watch(segment)
        entry = Entry(name, segment)
        written = view_segment(segment)
        with self._store.lock:
            if mutable:
                self._store.commit({}, {name: entry})
            else:
                self._drafts[name] = Draft(entry, written)
        return written

    def alloc_table(self, name: str, schema: Any, num_rows: int) -> TableDraft:
        """Lay out a table of fixed-width columns, to be filled in place.

        Parameters
        ----------
        name : str
            The entry's name. An existing entry of that name is replaced when this one is published.
        schema : pyarrow.Schema, or anything with ``__arrow_c_schema__``
            Of numbers, bools, dates and times, decimals, fixed-size binaries, and fixed-size lists
            of these. A field that is not nullable gets no bitmap, and can have no nulls.
        num_rows : int
            How many rows.

        Returns
        -------
        TableDraft
            All values are zero, and there. ``draft[column]`` is a column's memory, ``draft.set``
            takes values of its type and nulls, ``draft.seal()`` publishes.

        Raises
        ------
        HeavyZoneFullError
            If the space cannot be reserved; nothing is left behind.
        ValueError
            If a column has no fixed width, or two have one name.
        """
        schema = check_schema(name, schema, num_rows)
        segment = self._session.alloc_table(name, schema, num_rows)
        self._expect_tasks(segment.length_bytes)
        self.watch(segment)
        entry = Entry(name, segment)
        table = TableDraft(name, schema, num_rows, segment, lambda: self._seal_table(table))
        with self._store.lock:
            self._drafts[name] = Draft(entry, table)
        return table

    @overload
    def put(self, name: str, obj: np.ndarray[Any, Any] | np.generic) -> ShmArray: ...
    @overload
    def put(self, name: str, obj: object, *, views: bool = False) -> Any: ...
    def put(self, name: str, obj: object, *, views: bool = False) -> Any:
        """Copy an array or a table into the zone, sealed and published.

        Parameters
        ----------
        name : str
            The entry's name; an entry that has it is replaced.
        obj : ndarray, pyarrow, pandas or Polars data, or anything that offers such
            A numpy array of any dtype without Python objects, in any memory order: Fortran order is
            kept, anything that is neither is stored row-major. Tables and arrays of any Arrow type,
            pandas frames with their index, and whatever has ``__arrow_c_stream__``,
            ``__arrow_c_array__`` or ``__dlpack__``. Readers are read to their end, a batch at a
            time. Slices are stored as what they show.
        views : bool, default False
            Whether strings and binaries that are views stay such. Otherwise they are stored as
            large strings and binaries, which pyarrow can filter, sort and join.

        Returns
        -------
        ShmArray, pyarrow.Table, pyarrow.Array or pyarrow.ChunkedArray
            A read-only view of the entry; valid for as long as it is held.

        Raises
        ------
        TypeError
            If `obj` is neither an array nor a table.
        HeavyZoneFullError, UnsupportedDtypeError
            As for :meth:`alloc`.

        Notes
        -----
        One copy, made by several threads without the GIL, with no buffer in between. What had to be
        copied besides is in :func:`theus.copy_report`: dictionaries that differ between chunks,
        pandas values that are Python objects.
        """
        self._expect_tasks(getattr(obj, "nbytes", 0))
        entry = Entry(name, self._copy_in(name, obj, views=views))
        with self._store.lock:
            self._publish({name: entry})
            self._drafts.pop(name, None)
        return entry.view()

    def seal(self, name: str) -> Any:
        """Publish the draft `name`: from now on nobody can write it, this process included.

        Sealing what is published already changes nothing.

        Returns
        -------
        ShmArray, or what the table or array is
            A read-only view of the entry. Nothing is copied, unless this process forked since the
            allocation: a forked child could still write the old pages.

        Raises
        ------
        EntryNotFoundError
            If there is no such entry.
        """
        with self._store.lock:
            draft = self._drafts.get(name)
            if draft is None:
                return find_entry(self._store.current.entries, name).view()
            self._publish({name: draft.entry})
            return draft.entry.view()

    def free(self, name: str) -> None:
        """Remove entry `name`, under all the names it was published as.

        Views and held snapshots stay valid; the memory returns when the last of them is gone.

        Raises
        ------
        EntryNotFoundError
            If there is no such entry.
        """
        with self._store.lock:
            draft = self._drafts.pop(name, None)
            entries = self._store.current.entries
            if draft is not None and name not in entries:
                return
            found = find_entry(entries, name)
            same = self._store.entries_in(found.segment).items()
            self._store.commit({}, {key: None for key, entry in same if entry is found})

    # --- looking at them ---

    def path(self, name: str) -> str:
        """Return the path of the entry's segment, which any Arrow reader can open.

        Raises
        ------
        UnpublishedError
            If the entry was not published yet: it has no name in the file system then.
        EntryNotFoundError
            If there is no such entry.
        """
        with self._store.lock:
            entries = self._store.current.entries
            if name not in entries and name in self._drafts:
                return self._drafts[name].entry.segment.path
            return find_entry(entries, name).segment.path

    def stats(self) -> HeavyStats:
        """Return how much shared memory is used, and for what.

        Returns
        -------
        dict
            ``published_bytes`` are those of the current state, ``draft_bytes`` those not published
            yet, ``pinned_bytes`` those kept by older snapshots, running tasks or held entries.
            ``used_bytes`` is everything that counts against ``limit_bytes``; ``spilled_bytes`` are
            those of the others that lie in ``spill_dir``, where nothing counts. ``ready_bytes`` are
            nobody's: memory of freed entries and the engine's ``reserve``, for the next ones; it
            gives way to whatever needs it.
        """
        with self._store.lock:
            entries = self._store.current.entries
            published = {e.segment.number: e.segment.length_bytes for e in entries.values()}
            open_drafts = [draft.entry.segment for draft in self._drafts.values()]
            drafts = {segment.number: segment.length_bytes for segment in open_drafts}
            watched = {
                number: segment
                for number, watched in list(self._watched.items())
                if (segment := watched()) is not None
            }
            alive = {number: segment.length_bytes for number, segment in watched.items()}
            known = {segment.number: segment for segment in open_drafts} | watched
            return HeavyStats(
                session=self._session.id,
                entries=len(entries),
                drafts=len(drafts),
                published_bytes=sum(published.values()),
                draft_bytes=sum(drafts.values()),
                pinned_bytes=sum(
                    size
                    for number, size in alive.items()
                    if number not in published and number not in drafts
                ),
                used_bytes=self._session.used_bytes(),
                limit_bytes=self._session.heavy_limit,
                spilled_bytes=sum(s.length_bytes for s in known.values() if s.spilled),
                ready_bytes=self._session.ready_bytes(),
            )

    def __getitem__(self, name: str) -> Any:
        """Return the published entry `name` read-only, or its draft, writable, if there is none.

        Raises
        ------
        EntryNotFoundError
            If there is no such entry.
        """
        with self._store.lock:
            entries = self._store.current.entries
            if name not in entries and name in self._drafts:
                return self._drafts[name].view()
            return find_entry(entries, name).view()

    def __iter__(self) -> Iterator[str]:
        with self._store.lock:
            return iter([*self._store.current.entries, *self._only_drafts()])

    def __len__(self) -> int:
        with self._store.lock:
            return len(self._store.current.entries) + len(self._only_drafts())

    def __contains__(self, name: object) -> bool:
        return name in self._store.current.entries or name in self._drafts

    def __repr__(self) -> str:
        return f"HeavyZone(session={self._session.id!r}, entries=[{', '.join(self)}])"

    # --- for the engine ---

    def swap(
        self,
        base: int,
        domain: Mapping[str, Any],
        heavy: Mapping[str, Any],
        *,
        strict: bool,
    ) -> State:
        """Commit a ``compare_and_swap``: publish what is a draft, put what is plain data."""
        with self._store.lock:
            entries: dict[str, Entry | None] = {}
            for key, value in heavy.items():
                tensors.check_name(key)
                if value is None:
                    entries[key] = None
                    continue
                entry = self._entry_of(key, value)
                for draft in self._drafts.values():
                    if draft.entry.segment is entry.segment:
                        entries.setdefault(draft.entry.name, draft.entry)
                entries[key] = entry
            return self._publish(entries, domain=domain, base=base, strict=strict)

    def pin(self, name: str) -> Segment | None:
        """Return what keeps segment `name` of this session alive, None if it cannot be promised."""
        segment = array.attached.get(name)
        if segment is None or not segment.linked:
            return None
        watched = self._watched.get(segment.number)
        return segment if watched is not None and watched() is segment else None

    def clear(self) -> None:
        """Drop the drafts: the engine is closing."""
        self._drafts.clear()

    # --- inside ---

    def _only_drafts(self) -> list[str]:
        return [name for name in self._drafts if name not in self._store.current.entries]

    def _expect_tasks(self, nbytes: object) -> None:
        """Have the workers start while the first large entry is written."""
        grown = self.grown
        if grown is not None and isinstance(nbytes, int) and nbytes >= _LARGE_BYTES:
            self.grown = None
            grown()

    def watch(self, segment: Segment) -> None:
        """Have handles of a segment of this session find it, and workers told when it is gone."""
        self._watched[segment.number] = _Watched(segment, self._gone)
        array.attached[segment.name] = segment

    def _copy_in(self, name: str, obj: object, **how: bool) -> Segment:
        session = self._session
        create = session.create_tensor, session.create_table
        segment: Segment = put.copy_in(*create, name, obj, **how)
        self.watch(segment)
        return segment

    def _publish(
        self,
        entries: Mapping[str, Entry | None],
        *,
        domain: Mapping[str, Any] | None = None,
        base: int | None = None,
        strict: bool = False,
    ) -> State:
        def publish() -> None:
            for entry in entries.values():
                if entry is not None:
                    self._seal(entry)

        commit = self._store.commit
        state = commit(domain or {}, entries, base=base, strict=strict, publish=publish)
        if self.published is not None and any(map(_is_worth_mapping, entries.values())):
            self.published(state)
        return state

    def _seal(self, entry: Entry) -> None:
        segment = entry.segment
        if not segment.published:
            self._session.publish(segment)
            if segment.copied_at_publication:
                copies.note(entry.name, None, segment.length_bytes, "this process forked meanwhile")
        for name, draft in list(self._drafts.items()):
            if draft.entry.segment is segment:
                draft.close()
                del self._drafts[name]

    def _entry_of(self, key: str, value: Any) -> Entry:
        """Return the entry that `value` is, the view of one that it is, or plain data put anew."""
        found = self._lookup.find(key, value)
        return found or Entry(key, self._copy_in(key, value, asked=False))

    def _seal_table(self, table: TableDraft) -> Any:
        with self._store.lock:
            entry = self._lookup.drafted(table)
            if not entry.segment.published:
                self._publish({entry.name: entry})
            return entry.view()


def _is_worth_mapping(entry: Entry | None) -> bool:
    """Whether a task that looks at the entry gains much by finding it mapped."""
    return entry is not None and entry.segment.length_bytes >= _MAPPED_BYTES
