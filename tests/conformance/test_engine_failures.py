"""Tasks that fail, stop or die, with workers of each implementation: no other task notices."""

import signal
import time

import numpy as np
import pytest

import theus

DEADLINE_S = 30
BEGINS_S = 0.2  # a task that was sent begins soon


@pytest.fixture
def engine(dialect):
    with dialect.engine(workers=2) as engine:
        yield engine


@pytest.fixture
def alone(dialect):
    """An engine with one worker, which is ready."""
    with dialect.engine(workers=1) as engine:
        engine.submit(dialect.task("nothing")).result(DEADLINE_S)
        yield engine


def wait_for(holds):
    until = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


# --- errors ---


def test_an_error_has_its_type_and_text(dialect, run):
    with pytest.raises(Exception, match="größe: 7") as caught:
        run("fail", message="größe: 7")
    assert dialect.raised(caught.value) == ("Failed", "größe: 7")


@pytest.mark.parametrize("name", ["panic", "panic_in_parallel"])
def test_a_panic_has_where_it_was_for_a_cause(dialect, run, name):
    pid = run("pid")
    with pytest.raises(dialect.panic_error, match="never this") as caught:
        run(name, message="never this")
    assert dialect.source in str(caught.value.__cause__)
    wait_for(lambda: run("pid") == pid)  # it is as alive as before


@pytest.mark.parametrize("inputs", [{}, {"seconds": "x", "polite": True}, {"seconds": 0}])
def test_other_inputs_than_the_function_takes_are_a_type_error(run, inputs):
    with pytest.raises(TypeError):
        run("sleep", **inputs)
    assert run("nothing") is None


def test_a_result_that_cannot_be_sent_is_told(run):
    with pytest.raises(theus.TheusError, match=r"result|value"):
        run("unsendable")
    assert run("nothing") is None


def test_an_entry_that_there_is_not_is_told(run):
    with pytest.raises(theus.EntryNotFoundError, match="nobody"):
        run("sum", column="nobody")


@pytest.mark.needs("plain")
def test_a_name_that_nobody_has_is_told_before_it_is_sent(engine, run):
    with pytest.raises(theus.NativeTaskNotFoundError, match="'double'"):
        engine.submit(theus.native("doubel"))
    assert run("nothing") is None


@pytest.mark.needs("plain")
@pytest.mark.needs("types")
def test_an_entry_of_other_items_is_a_type_error(engine, run):
    array = engine.heavy.put("x", np.arange(10, dtype=np.int32))
    with pytest.raises(theus.NativeTypeError):
        run("sum_of", array=array)
    with pytest.raises(theus.NativeTypeError):
        run("rows_of", array=array)


# --- the end of a process ---


def test_a_worker_that_is_killed_amid_many_tasks_fails_one(dialect, engine):
    task, kill = dialect.task("echo"), dialect.task("kill")
    futures = [engine.submit(kill) if n == 20 else engine.submit(task, value=n) for n in range(50)]
    errors = [future.exception(DEADLINE_S) for future in futures]
    (error,) = filter(None, errors)
    assert errors.index(error) == 20
    assert isinstance(error, theus.WorkerDiedError)
    assert error.signal == signal.SIGKILL
    assert [f.result() for f in futures if f is not futures[20]] == [*range(20), *range(21, 50)]


def test_the_end_of_a_process_is_told_as_it_was(dialect, run):
    with pytest.raises(theus.WorkerDiedError) as caught:
        run("abort")
    assert caught.value.signal == signal.SIGABRT
    for code in 0, 3:
        with pytest.raises(theus.WorkerDiedError) as caught:
            run("exit", code=code)
        assert caught.value.exit_code == code
    assert run("nothing") is None


# --- stopping ---


@pytest.mark.parametrize("polite", [True, False])
def test_a_task_that_takes_too_long_is_stopped(dialect, alone, polite):
    pid = alone.submit(dialect.task("pid")).result(DEADLINE_S)
    future = alone.submit(dialect.task("sleep"), seconds=60, polite=polite, timeout=0.2)
    with pytest.raises(TimeoutError):
        future.result(DEADLINE_S)
    after = alone.submit(dialect.task("pid")).result(DEADLINE_S)
    assert (after == pid) is polite, "who looks goes on, who does not is killed"


@pytest.mark.parametrize("polite", [True, False])
def test_a_task_that_is_cancelled_is_stopped(dialect, alone, polite):
    pid = alone.submit(dialect.task("pid")).result(DEADLINE_S)
    future = alone.submit(dialect.task("sleep"), seconds=60, polite=polite)
    wait_for(future.running)
    time.sleep(BEGINS_S)
    future.cancel()
    after = alone.submit(dialect.task("pid")).result(DEADLINE_S)
    assert (after == pid) is polite


def test_tasks_behind_one_that_is_stopped_are_run(dialect, alone):
    stopped = alone.submit(dialect.task("sleep"), seconds=60, polite=False, timeout=0.2)
    behind = [alone.submit(dialect.task("echo"), value=n) for n in range(20)]
    assert [future.result(DEADLINE_S) for future in behind] == list(range(20))
    assert isinstance(stopped.exception(0), TimeoutError)


def test_an_engine_that_closes_leaves_no_worker_running(dialect):
    engine = dialect.engine(workers=2)
    future = engine.submit(dialect.task("sleep"), seconds=60, polite=False)
    wait_for(future.running)
    engine.close()
    assert isinstance(future.exception(DEADLINE_S), theus.SessionClosedError)
