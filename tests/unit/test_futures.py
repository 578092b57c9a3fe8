"""A future that makes its lock late is a future in all else."""

import threading
from concurrent.futures import CancelledError, Future, InvalidStateError, as_completed, wait

import pytest

from theus.futures import IS_KNOWN, LateFuture


def test_the_standard_librarys_futures_are_made_of_what_is_known():
    assert IS_KNOWN, f"this Python's futures have other parts: {sorted(vars(Future()))}"
    assert not vars(LateFuture())


def test_it_answers_as_a_new_future_does():
    late, other = LateFuture(), Future()
    assert (late.done(), late.running(), late.cancelled()) == (False, False, False)
    with pytest.raises(TimeoutError):
        late.result(0)
    assert late.cancel() == other.cancel() is True
    assert not late.settle(1), "a cancelled future stays cancelled"
    with pytest.raises(CancelledError):
        late.result(0)
    with pytest.raises(AttributeError, match="nothing"):
        _ = late.nothing


def test_one_that_nobody_looked_at_is_settled_without_a_lock():
    late = LateFuture()
    assert late.settle(5)
    assert "_condition" not in vars(late)
    assert (late.done(), late.result(0), late.exception(0)) == (True, 5, None)
    assert not late.cancel()
    with pytest.raises(InvalidStateError):
        late.set_result(6)
    called = []
    late.add_done_callback(called.append)
    assert called == [late]
    assert wait([late], timeout=0).done == {late}


def test_one_that_somebody_looked_at_is_set_as_others_are():
    late = LateFuture()
    called = []
    late.add_done_callback(called.append)
    assert not late.settle(5)
    late.set_result(5)
    assert called == [late]


def test_whoever_comes_in_the_moment_of_the_result_has_it():
    """Waiters, callbacks and cancels against the settling thread, many times over."""
    for turn in range(3_000):
        late = LateFuture()
        start = threading.Barrier(2)
        seen = []

        def come(late=late, start=start, seen=seen, turn=turn):
            start.wait()
            if turn % 4 == 0:
                seen.append(late.result(20))
            elif turn % 4 == 1:
                late.add_done_callback(lambda future: seen.append(future.result(0)))
            elif turn % 4 == 2:
                seen.extend(future.result(0) for future in as_completed([late], 20))
            else:
                seen.append(late.cancel())

        other = threading.Thread(target=come)
        other.start()
        start.wait()
        if not late.settle(turn):
            try:
                late.set_result(turn)
            except InvalidStateError:
                assert late.cancelled()
        other.join(30)
        assert not other.is_alive(), "a waiter was not told"
        expected = [late.cancelled()] if turn % 4 == 3 else [turn]
        assert seen == expected
