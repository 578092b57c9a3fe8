"""Maps that share what they have in common behave as copies of dicts would."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from theus.history import History
from theus.persistent import changed

KEYS = st.integers(0, 40).map(str)
CHANGES = st.dictionaries(KEYS, st.one_of(st.none(), st.integers()), max_size=6)


def with_changes(items, changes):
    new = {**items, **changes}
    return {key: value for key, value in new.items() if value is not None}


def test_keys_keep_their_order_at_all_sizes():
    old, expected = {}, {}
    sizes = set()
    versions = []
    grow = [{f"{step}-{number}": number for number in range(25)} for step in range(24)]
    shrink = [dict.fromkeys(names) for names in grow[:-1]]
    replace = [{"23-7": "again", "0-0": "back", "23-0": None}]
    for changes in [*grow, *replace, *shrink, *replace]:
        old, expected = changed(old, changes), with_changes(expected, changes)
        versions.append((old, list(expected.items())))
        sizes.add(len(expected))
    assert max(sizes) > 2 * 256
    assert min(sizes) < 64
    for version, items in versions:
        assert list(version.items()) == items
        assert len(version) == len(items)
        assert all(version[key] == value and key in version for key, value in items)
        assert "nobody" not in version
        assert version.get("nobody") is None


def test_a_map_cannot_be_changed():
    for size in (3, 300):
        items = changed({}, dict.fromkeys(map(str, range(size)), 1))
        assert not hasattr(items, "__setitem__")
        assert not hasattr(items, "__delitem__")


def carried_out(changes, old, new):
    """Do what a worker does."""
    kept = changed(old, dict.fromkeys(changes.removed))
    return changed(kept, {key: new[key] for key in changes.set})


@settings(max_examples=200, deadline=None)
@given(st.lists(CHANGES, max_size=12))
def test_what_differs_makes_any_later_version_and_most_earlier_ones(steps):
    history, versions = History(), [{}]
    for number, step in enumerate(steps, 1):
        history.note(number, {}, step, len(versions[-1]))
        versions.append(with_changes(versions[-1], step))
    for number, target in enumerate(versions):
        for base, held in enumerate(versions):
            found = history.between(base, number, {}, target)
            if base == number:
                continue
            if base < number:
                assert found is not None
            if found is not None:
                domain, heavy = found
                assert domain == ([], [])
                made = carried_out(heavy, held, target)
                assert list(made.items()) == list(target.items())


def test_one_version_back_is_told_by_what_differs_if_nothing_was_removed():
    history = History()
    history.note(1, {"a": 1, "b": 1}, {}, 2)
    history.note(2, {"b": 2, "c": 2}, {}, 3)
    history.note(3, {"a": None}, {}, 2)
    assert history.between(2, 1, {"a": 1, "b": 1}, {}) == ((["c"], ["b"]), ([], []))
    assert history.between(3, 2, {"a": 1, "b": 2, "c": 2}, {}) is None


def test_history_goes_back_only_as_far_as_it_is_shorter_than_everything():
    history = History()
    everything = 3000
    for number in range(1, 10_001):
        history.note(number, {}, {str(number): 1}, everything)
    there = {str(number): 1 for number in range(1, 10_001)}
    known = [base for base in range(10_000) if history.between(base, 10_000, {}, there)]
    assert all(later == earlier + 1 for earlier, later in pairwise(known))
    assert 1000 <= len(known) <= everything / 2
