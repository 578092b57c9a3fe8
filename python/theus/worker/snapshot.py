"""One version of the state as a worker holds it: descriptors and pickles, opened when looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from theus.heavy.array import ShmArray
from theus.heavy.entry import view_described
from theus.serialize.unpickler import loads
from theus.state.persistent_map import changed

if TYPE_CHECKING:
    from theus._theus import Segment
    from theus.serialize.message import Message

__all__ = ["EntryReference", "LazyDomain", "SegmentReferences", "WorkerSnapshot"]

_MOST_SEEN = 1024
"""How many arrays of entries are kept for the next look, as each keeps its mapping."""


class EntryReference:
    """An entry of a state as its descriptor tells it; mapped when it is first looked at."""

    __slots__ = ("_attach", "_descriptor", "_seen", "name")

    def __init__(
        self,
        descriptor: dict[str, Any],
        attach: Callable[[str], Segment],
        seen: dict[str, ShmArray],
    ) -> None:
        self.name: str = descriptor["segment"]
        self._descriptor = descriptor
        self._attach = attach
        self._seen = seen

    def view(self) -> Any:
        """Return the array or table; mapped when it is first looked at."""
        whole = self._seen.get(self.name)
        if whole is not None and "view" not in self._descriptor:
            return whole.view()  # whose shape its user may change
        segment = self._attach(self.name)
        viewed = view_described(segment, self._descriptor)
        if type(viewed) is ShmArray and "view" not in self._descriptor and not segment.mutable:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen[self.name] = viewed.view()
        return viewed


class LazyDomain(Mapping[str, Any]):
    """One state's domain: pickles by key, unpickled at each access."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Mapping[str, Message]) -> None:
        self._messages = messages

    def changed(self, changes: Mapping[str, Message | None]) -> LazyDomain:
        """Return the domain of another state, which differs in this."""
        return LazyDomain(changed(self._messages, changes))

    def __getitem__(self, key: str) -> Any:
        return loads(self._messages[key])

    def __iter__(self) -> Any:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)


WorkerSnapshot = tuple[LazyDomain, Mapping[str, "EntryReference"], "SegmentReferences"]
"""The domain, the entries, and where these lie: what a task of this state is given."""


class SegmentReferences:
    """The segments in which a state's entries lie, each with the number of these."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def __contains__(self, name: str) -> bool:
        return name in self._counts

    def changed(
        self, gone: Iterable[EntryReference | None], come: Iterable[EntryReference]
    ) -> SegmentReferences:
        """Return those of another state, without some entries and with others."""
        counts = Counter(entry.name for entry in come)
        counts.subtract(entry.name for entry in gone if entry)
        known = self._counts
        changes = {name: known.get(name, 0) + n or None for name, n in counts.items()}
        return SegmentReferences(changed(known, changes))
