"""Programs that are no workers, not yet, not any more, or not of this version."""

import contextlib
import errno
import json
import logging
import os
import pickle
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from book_tools import BOOK, DEADLINE_S, HERE, hello, program, waits_for

import theus
from theus import native
from theus.dispatch import dispatcher


@pytest.fixture
def engine():
    with theus.TheusEngine(workers=2) as engine:
        engine.native_worker(BOOK)
        yield engine


def refusal(path, **options):
    with theus.TheusEngine(workers=1) as engine:
        with pytest.raises(theus.NativeWorkerError) as caught:
            engine.native_worker(path, **options)
        assert engine.tasks() == {}
        assert engine.submit(lambda ctx: 7).result(DEADLINE_S) == 7
    error = caught.value
    assert str(path) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    return error


def test_a_program_that_is_not_there(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing").reason
    assert "interpreter" in refusal(program(tmp_path, "", interpreter="/no/such")).reason
    plain_file = tmp_path / "file"
    plain_file.write_text("")
    assert "chmod +x" in refusal(plain_file).reason
    plain_file.write_bytes(b"\x7fELF, but not quite")
    plain_file.chmod(0o755)
    assert "no program for this machine" in refusal(plain_file).reason


def test_a_program_that_cannot_be_started_for_now_or_at_all(tmp_path, monkeypatch):
    written = program(tmp_path, "", name="written")
    with written.open("a"):
        assert "it is still being written" in refusal(written).reason
    assert refusal(BOOK, args=["x" * (1 << 21)]).reason == os.strerror(errno.E2BIG)
    monkeypatch.chdir(tmp_path)
    assert "~ is not expanded" in refusal("~/written").reason


def test_a_machine_without_descriptors_is_not_the_programs_fault():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with theus.TheusEngine(workers=1) as engine:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        taken = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            with pytest.raises(theus.errors.DescriptorLimitError):
                engine.native_worker(BOOK)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "book.add" in engine.native_worker(BOOK)


def test_arguments_that_are_none(engine):
    for wrong, what in (
        ({"args": "--flag"}, r"such as \['--flag'\]"),
        ({"count": 2.0}, "count is a number of processes, an int, not 2.0"),
        ({"count": True}, "not True"),
    ):
        with pytest.raises(TypeError, match=what):
            engine.native_worker(BOOK, **wrong)
    with pytest.raises(TypeError):
        engine.native_worker(3)
    with theus.TheusEngine(workers=1) as other:
        assert other.native_worker(os.fsencode(BOOK)) == tuple(engine.native_worker(BOOK))
        assert other.tasks()["book.add"].program == str(BOOK)
    with pytest.raises(theus.SessionClosedError):
        other.tasks()


def test_a_program_that_is_no_worker(tmp_path, monkeypatch):
    assert "left with exit code 0 before it said hello, as a program does" in str(
        refusal("/bin/true")
    )
    complains = program(tmp_path, "import sys\nsys.exit('out of cheese')")
    assert "exit code 1" in (reason := refusal(complains).reason)
    assert "out of cheese" in reason
    assert "ended by signal 9" in refusal("/bin/sh", args=["-c", "kill -9 $$"]).reason
    monkeypatch.setattr(dispatcher, "HELLO_S", 0.2)
    assert "no hello within 0.2 s" in refusal("/bin/sleep", args=["60"]).reason


GOLDEN = HERE.parents[1] / "schemas/golden/frames-1.json"


def test_an_old_worker_is_told_from_a_broken_one(tmp_path):
    frames = json.loads(GOLDEN.read_text())["frames"]
    old = next(vector for vector in frames if vector["name"] == "hello")["frame"]
    source = (
        "import json, os, time\n"
        "channel = json.loads(os.environ['THEUS_WORKER'])['channel']\n"
        f"os.write(channel, bytes.fromhex({old!r}))\n"
        "time.sleep(60)\n"
    )
    error = refusal(program(tmp_path, source))
    assert error.version == 1
    assert "speaks version 1 " in str(error)
    assert "this engine speaks version 2: build it again" in str(error)
    chats = source.replace(repr(old), repr(b"GET / HTTP/1.1\r\n\r\n".hex()))
    error = refusal(program(tmp_path, chats))
    assert (error.version, "no worker" in error.reason) == (None, True)


def test_a_worker_that_says_something_else_of_itself(tmp_path):
    assert '"tasks"' in refusal(program(tmp_path, hello(tasks=3))).reason
    assert "no plain values" in refusal(program(tmp_path, hello(capabilities=["dance"]))).reason


def test_names_are_unique_among_programs(engine, tmp_path):
    other = program(tmp_path, hello(tasks=["mine", "book.add"]))
    with pytest.raises(theus.NativeWorkerError, match=r"'book\.add', which .*by_the_book\.py has"):
        engine.native_worker(other)
    assert "mine" not in engine.tasks()
    alone = program(tmp_path, hello(tasks=["mine", "größe"]), name="alone")
    assert engine.native_worker(alone, count=1) == ("mine", "größe")
    assert engine.tasks()["größe"].program == str(alone)


def replaced(engine, path, source):
    path.write_text(f"#!{sys.executable}\n{source}")
    for pid in engine.worker_pids:
        os.kill(pid, signal.SIGKILL)
    return engine.submit(native("mine")).exception(DEADLINE_S)


def test_a_program_that_is_replaced_while_the_engine_runs(tmp_path):
    path = program(tmp_path, hello(tasks=["mine"]))
    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(path)
        error = replaced(engine, path, hello(tasks=["yours"]))
        assert isinstance(error, theus.NativeWorkerError)
        assert "make a new engine for the new one" in str(error)
        with pytest.raises(theus.NativeWorkerError, match="make a new engine"):
            engine.native_worker(path)
        path.unlink()
        error = engine.submit(native("mine")).exception(DEADLINE_S)
        assert isinstance(error, theus.NativeWorkerError)
        assert "no such file" in str(error)


def test_there_are_only_so_many_seats():
    with theus.TheusEngine(workers=1) as engine:
        for count in 0, 1001:
            with pytest.raises(ValueError, match="count must be"):
                engine.native_worker(BOOK, count=count)
        with pytest.raises(ValueError, match="up to 1000 workers"):
            engine.native_worker(BOOK, count=1000)


ALONE = """
import fcntl, sys
device = open({lock!r}, "w")
try:
    fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("the device is in use")
"""


def test_a_program_that_runs_once_alone_runs_all_tasks_there(tmp_path):
    source = ALONE.format(lock=str(tmp_path / "device")) + hello(tasks=["book.nap"])
    with theus.TheusEngine(workers=4) as engine:
        engine.native_worker(program(tmp_path, source))
        futures = [engine.submit(native("book.nap"), seconds=0.2) for _ in range(5)]
        assert [future.result(DEADLINE_S) for future in futures] == ["slept"] * 5
        assert len(engine.worker_pids) <= 4


def test_programs_that_are_refused_leave_no_seat_taken(tmp_path):
    other = program(tmp_path, hello(tasks=["book.add"]))
    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(BOOK)
        for _ in range(5):
            with pytest.raises(theus.NativeWorkerError, match="names are unique"):
                engine.native_worker(other)
        waits_for(lambda: len(engine.worker_pids) == 1)
        assert len(engine.native_worker(BOOK, count=999)) > 0


def test_the_same_program_is_started_once(engine_with_book):
    engine = engine_with_book
    pids = engine.worker_pids
    names = engine.native_worker(BOOK)
    assert "book.add" in names
    assert engine.worker_pids == pids
    with pytest.raises(theus.NativeWorkerError, match="other arguments"):
        engine.native_worker(BOOK, args=["--verbose"])


@pytest.fixture
def engine_with_book():
    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(BOOK)
        yield engine


def test_threads_that_start_the_same_program_start_it_once():
    for _ in range(5):
        with theus.TheusEngine(workers=1) as engine, ThreadPoolExecutor(4) as pool:
            names = {pool.submit(engine.native_worker, BOOK) for _ in range(4)}
            assert len({future.result() for future in names}) == 1
            waits_for(lambda engine=engine: len(engine.worker_pids) == 1)


def test_a_start_waits_for_no_other_and_none_begins_after_the_end(tmp_path):
    slow = [program(tmp_path, "import time\ntime.sleep(60)", name=name) for name in "ab"]
    with theus.TheusEngine(workers=1) as engine, ThreadPoolExecutor(2) as pool:
        engine.native_worker(BOOK)
        starting = [pool.submit(engine.native_worker, path) for path in slow]
        waits_for(lambda: len(engine.worker_pids) == 3)
        assert "book.add" in engine.native_worker(BOOK)
        assert not any(future.done() for future in starting)
        engine.close()
        for future in starting:
            with pytest.raises(theus.SessionClosedError):
                future.result(DEADLINE_S)
    with pytest.raises(theus.SessionClosedError):
        engine._dispatcher.start_native(str(slow[0]), 1, (), {})


EARLY = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import json, os
import by_the_book as book

book.TASKS = {{"early": book.noop}}
worker = book.Worker(json.loads(os.environ["THEUS_WORKER"]))
frames = []
worker.send = lambda *frame: frames.append(book.encode(*frame))
worker.say_hello()
worker.send(book.LOG, (0, 40), (b"here I am",))
del worker.send
worker.channel.sendall(b"".join(frames))  # both at once
worker.serve()
"""


def test_a_handler_of_the_log_may_start_a_program(tmp_path):
    class Starts(logging.Handler):
        def emit(self, record):
            started.append(engine.native_worker(BOOK))

    started, handler, log = [], Starts(), logging.getLogger("theus.worker")
    with theus.TheusEngine(workers=1) as engine:
        log.addHandler(handler)
        try:
            assert engine.native_worker(program(tmp_path, EARLY)) == ("early",)
            assert engine.submit(native("early")).result(DEADLINE_S) is None
            waits_for(lambda: started)
        finally:
            log.removeHandler(handler)
        assert "book.add" in started[0]


def test_closing_ends_a_program_that_is_starting():
    engine = theus.TheusEngine(workers=1)
    raised = []

    def start():
        with pytest.raises(theus.SessionClosedError) as caught:
            engine.native_worker("/bin/sleep", args=["60"])
        raised.append(caught.value)

    thread = threading.Thread(target=start)
    thread.start()
    time.sleep(0.3)
    engine.close()
    thread.join(DEADLINE_S)
    assert len(raised) == 1


def test_an_engine_that_is_left_open_ends_quietly_with_its_process(python):
    done = python(
        "import os, time, weakref, theus\n"
        "class Other: pass\n"
        "other = Other()\n"
        "engine = theus.TheusEngine(workers=1)\n"
        "opened = lambda: globals().update(fd=os.open('other', os.O_CREAT | os.O_RDWR))\n"
        "weakref.finalize(other, opened)\n"
        f"engine.native_worker({str(BOOK)!r})\n"
        "engine.submit(theus.native('book.nap'), seconds=0.5)\n"
        "time.sleep(0.1)\n"
    )
    assert done.stderr == ""
