"""Maps that share what they have in common behave as copies of dicts would."""

from hypothesis import strategies as st

from theus.state.persistent_map import changed

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
