"""What tasks tell while they run: lines for the log, and how far they are."""

import asyncio
import gc
import logging
import threading
import weakref

import psutil
import pytest
from book_tools import BOOK, DEADLINE_S, HERE, program, run, waits_for

import theus
from theus import native, process


@pytest.fixture
def engine():
    with theus.TheusEngine(workers=2) as engine:
        engine.native_worker(BOOK)
        yield engine


def test_lines_reach_the_log(engine, caplog):
    caplog.set_level(logging.DEBUG, "theus.worker")
    assert run(engine, "log", levels=[10, 20, 30, 40]) == "logged"

    def lines_of_workers():
        return [record for record in caplog.records if record.name == "theus.worker"]

    waits_for(lambda: len(lines_of_workers()) == 4)
    lines = lines_of_workers()
    assert [record.levelno for record in lines] == [10, 20, 30, 40]
    assert lines[0].getMessage() == "a line of level 10"
    assert {record.task for record in lines} == {"book.log"}
    assert {record.pid for record in lines} <= set(engine.worker_pids)


def test_a_level_that_there_is_not_ends_the_worker(engine):
    with pytest.raises(theus.ProtocolError, match="not 35"):
        run(engine, "log", levels=[35])
    assert run(engine, "noop") is None


@process(parallel=True)
def says(ctx, text="hello"):
    ctx.log(text, "warning")
    return text


@pytest.mark.parametrize("task", [native("book.log"), says], ids=["native", "python"])
def test_a_short_task_that_logs(engine, caplog, task):
    caplog.set_level(logging.INFO, "theus.worker")

    async def main():
        return [await engine.execute(task) for _ in range(1000)]

    assert len(set(asyncio.run(main()))) == 1
    waits_for(lambda: len(caplog.records) == 1000)


def test_progress_is_told_and_kept(engine):
    told = []
    task = native("book.progress", on_progress=told.append)
    future = engine.submit(task, total=3)
    assert future.progress is None
    assert future.result(DEADLINE_S) == "done"
    waits_for(lambda: len(told) == 3)
    assert told == [theus.Progress(n, 3, f"step {n}") for n in (1, 2, 3)]
    assert future.progress == told[-1]
    future = engine.submit(task, total=0, seconds=60)
    waits_for(lambda: future.progress is not None and future.progress.done == 3)
    assert future.progress.total is None
    future.cancel()


def test_what_a_callback_of_progress_raises_is_logged(engine, caplog):
    def fails(_):
        raise KeyError("mine")

    future = engine.submit(native("book.progress", on_progress=fails), total=3)
    assert future.result(DEADLINE_S) == "done"
    assert (
        sum(
            "on_progress raised for what book.progress told" in r.getMessage()
            for r in caplog.records
        )
        == 3
    )


def test_a_handler_of_the_log_that_raises_harms_no_other_task(engine, caplog):
    class Broken(logging.Handler):
        def emit(self, record):
            raise KeyError("mine")

    handler = Broken()
    log = logging.getLogger("theus.worker")
    log.addHandler(handler)
    try:
        other = engine.submit(native("book.nap"), seconds=0.2)
        assert run(engine, "log", levels=[40]) == "logged"
        assert other.result(DEADLINE_S) == "slept"
    finally:
        log.removeHandler(handler)
    assert any("a handler of the logger" in record.getMessage() for record in caplog.records)


def test_a_callback_of_progress_may_run_tasks_and_is_not_called_while_it_does(engine):
    lock, begun, results = threading.Lock(), [], []

    def add(progress):
        assert lock.acquire(timeout=DEADLINE_S)  # as one that is called while it runs would not
        begun.append(progress.done)
        results.append(run(engine, "add", numbers=[progress.done]))
        lock.release()

    future = engine.submit(native("book.progress", on_progress=add), total=3)
    assert future.result(DEADLINE_S) == "done"
    waits_for(lambda: len(results) == 3)
    assert begun == results == [1, 2, 3]


def test_a_callback_of_progress_may_wait_for_its_own_task(engine):
    results = []

    def waits(progress):
        results.append(future.result(DEADLINE_S))

    for _ in range(2):  # so that it tells when `future` is there
        engine.submit(native("book.nap"), seconds=0.2)
    future = engine.submit(native("book.progress", on_progress=waits), total=3)
    assert future.result(DEADLINE_S) == "done"
    waits_for(lambda: results == ["done"] * 3)


def test_an_engine_that_a_callback_refers_to_is_collected():
    class App:
        def __init__(self):
            self.engine = theus.TheusEngine(workers=1)
            self.engine.native_worker(BOOK)

        def work(self):
            for _ in range(5):
                run(self.engine, "progress", total=3)
                task = native("book.progress", on_progress=self.told)
                self.engine.submit(task, total=3).result(DEADLINE_S)

        def told(self, progress):
            self.last = progress

    app = App()
    app.work()
    engine = weakref.ref(app.engine)
    pids = app.engine.worker_pids
    del app
    gc.collect()
    assert engine() is None
    assert not any(psutil.pid_exists(pid) for pid in pids)


def tells(ctx, total):
    for done in range(total):
        ctx.progress(done, total, "going")
    return total


def test_python_tasks_tell_too(engine, caplog):
    caplog.set_level(logging.INFO, "theus.worker")
    future = engine.submit(tells, total=5)
    assert future.result(DEADLINE_S) == 5
    assert future.progress == theus.Progress(4, 5, "going")
    assert engine.submit(says, text="größe").result(DEADLINE_S) == "größe"
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == ("größe", "WARNING")
    assert record.task == "test_news.says"


@pytest.mark.parametrize("where", ["in a worker", "here"])
@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda ctx: ctx.log("", "loud"), ValueError, "loud"),
        (lambda ctx: ctx.log(3), TypeError, "is a str, not 3"),
        (lambda ctx: ctx.progress(-1), ValueError, "at least 0"),
        (lambda ctx: ctx.progress(1, 2, 3), TypeError, "is a str, not 3"),
        (lambda ctx: ctx.progress("1"), TypeError, "integer"),
    ],
    ids=["level", "line", "done", "message", "number"],
)
def test_what_cannot_be_told_is_refused(engine, where, wrong, error, text):
    def tell():
        if where == "here":
            asyncio.run(engine.execute(wrong))
        else:
            engine.submit(wrong).result(DEADLINE_S)

    with pytest.raises(error, match=text):
        tell()


def test_a_process_that_runs_here_logs_here(engine, caplog):
    async def main():
        assert await engine.execute(tells, total=3) == 3
        return await engine.execute(here)

    assert asyncio.run(main()) == "here"
    (record,) = [r for r in caplog.records if r.name == "theus.worker"]
    assert record.getMessage() == "from here"


def here(ctx):
    ctx.log("from here", "error")
    return "here"


LETTERS = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import json, os, struct, time
import by_the_book as book

POLLS, LETTER, MARK, LENGTH, PLACE = 320, 256, 264, 272, 2048  # to_owner, in control.json


class Writer(book.Worker):
    sent_bytes = letters = 0

    def send(self, kind, fields, attachments):
        if kind == book.RESULT:  # short ones, for which the owner polls
            fields = (fields[0], 1000)
        super().send(kind, fields, attachments)
        self.sent_bytes += len(book.encode(kind, fields, attachments))

    def leave(self, frame):
        page = self.page
        if not page[POLLS // 8]:
            return False
        self.letters += 1
        page[MARK // 8], page[LENGTH // 8] = self.sent_bytes, len(frame)
        page.cast("B")[PLACE : PLACE + len(frame)] = frame
        page[LETTER // 8] = self.letters
        while page[LETTER // 8] and page[POLLS // 8]:
            pass
        return True


def letter(context):
    worker, fields = context.worker, (context.task, 20)
    return worker.leave(book.encode(book.LOG, fields, (b"a letter",)))


def wrong(context):
    if context.worker.leave(book.encode(1, (), (b"an owner's frame",))):
        time.sleep(1)  # who has ended when its owner looks is not to blame
        # An owner that had stopped to poll when it was left finds it before the result.


book.TASKS = {{"letter": letter, "wrong": wrong}}
worker = Writer(json.loads(os.environ["THEUS_WORKER"]))
worker.say_hello()
worker.serve()
"""


def test_a_line_that_comes_as_a_letter_is_no_outcome(tmp_path, caplog):
    caplog.set_level(logging.INFO, "theus.worker")

    async def main(engine):
        return [await engine.execute(native("letter")) for _ in range(1000)]

    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(program(tmp_path, LETTERS))
        left = asyncio.run(main(engine))
    assert sum(left) > 10, "the owner does not poll for short tasks"
    assert [record.getMessage() for record in caplog.records] == ["a letter"] * sum(left)


def test_a_letter_that_is_no_answer_ends_its_worker(tmp_path):
    async def again_and_again(engine):
        while True:
            await engine.execute(native("wrong"))

    async def main(engine):
        with pytest.raises(theus.ProtocolError, match=r"it had wrong: .* SETUP frame"):
            await again_and_again(engine)
        return await engine.execute(native("letter"))

    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(program(tmp_path, LETTERS), count=1)
        (before,) = engine.worker_pids
        assert asyncio.run(main(engine)) in (True, False)
        (after,) = engine.worker_pids
        assert before != after
