"""Every test runs with each implementation of the protocol; what that is, no test can tell."""

import os

import pytest
from dialects import DIALECTS
from owner import Owner

from theus import _theus

DEADLINE_S = 30

skipped = {name: set() for name in DIALECTS}
"""What tests needed that an implementation lacks."""


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(feature): skipped where the dialect says it lacks it")


@pytest.fixture(params=DIALECTS)
def dialect(request):
    dialect = DIALECTS[request.param]
    for marker in request.node.iter_markers("needs"):
        (feature,) = marker.args
        if feature in dialect.lacks:
            skipped[dialect.name].add(feature)
            pytest.skip(f"{dialect.name} has no {feature!r}, as its dialect declares")
    return dialect


@pytest.fixture(scope="session")
def skips():
    return skipped


@pytest.fixture
def session():
    session = _theus.Session.create()
    yield session
    session.close()


@pytest.fixture
def start(dialect, session):
    """Start a worker, which ends with the test."""
    owners = []

    def start(**options):
        budget = session.budget_fd()
        try:
            owners.append(Owner(dialect, session.id, budget, **options))
        finally:
            os.close(budget)
        return owners[-1]

    yield start
    for owner in owners:
        owner.close()


@pytest.fixture
def owner(start):
    """The owner of a worker that has said hello."""
    owner = start()
    owner.greet()
    return owner


@pytest.fixture
def run(dialect, engine):
    """Run a task of the test's engine, by name, to its result."""

    def run(name, **inputs):
        return engine.submit(dialect.task(name), **inputs).result(DEADLINE_S)

    return run
