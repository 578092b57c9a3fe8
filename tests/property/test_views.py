"""Random views in random containers arrive equal, by handle, as input, as result and by hand."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from theus import TheusEngine

SHAPE = (40, 30, 50)
WIRE_LIMIT = 4096


@dataclass
class Box:
    inside: object


@pytest.fixture
def zone():
    with TheusEngine(workers=1) as engine:
        engine.heavy.put("x", np.random.default_rng(0).integers(0, 100, SHAPE))
        engine.heavy.put("f", np.asfortranarray(np.random.default_rng(1).random(SHAPE)))
        yield engine


@st.composite
def views(draw):
    """A recipe: which entry, the steps to the view, and whether it is a plain ndarray."""
    steps = []
    for axis in range(3):
        start = draw(st.integers(0, SHAPE[axis] - 1))
        step = draw(st.sampled_from([1, 2, -1, -3]))
        steps.append((start, step))
    return draw(st.sampled_from("xf")), steps, draw(st.permutations(range(3))), draw(st.booleans())


def make(engine, recipe):
    name, steps, axes, plain = recipe
    view = engine.heavy[name][tuple(slice(s, None, t) for s, t in steps)].transpose(axes)
    return view.view(np.ndarray) if plain else view


def wire_bytes(engine):
    return engine._dispatcher.traffic


def echo(ctx, value):
    return value


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipe=views(), wrap=st.sampled_from(["bare", "list", "dict", "box", "nested"]))
def test_views_travel_by_handle(zone, recipe, wrap):
    view = make(zone, recipe)
    wrapped = {
        "bare": lambda v: v,
        "list": lambda v: [1, v],
        "dict": lambda v: {"k": (v, "s")},
        "box": Box,
        "nested": lambda v: [{"a": Box({"b": v})}],
    }[wrap](view)
    zone.submit(echo, value=0).result()
    sent, received = wire_bytes(zone)
    back = zone.submit(echo, value=wrapped).result()
    now_sent, now_received = wire_bytes(zone)
    inner = {
        "bare": lambda b: b,
        "list": lambda b: b[1],
        "dict": lambda b: b["k"][0],
        "box": lambda b: b.inside,
        "nested": lambda b: b[0]["a"].inside["b"],
    }[wrap](back)
    np.testing.assert_array_equal(inner, view)
    assert type(inner) is type(view)
    assert not inner.flags.writeable
    assert now_sent - sent < WIRE_LIMIT
    assert now_received - received < WIRE_LIMIT
    if not recipe[3]:
        data = pickle.dumps(view)
        assert len(data) < WIRE_LIMIT
        np.testing.assert_array_equal(pickle.loads(data), view)
