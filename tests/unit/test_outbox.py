"""What has come is passed on in its task's order, and none of it stays with a thread that waits."""

import threading
from types import SimpleNamespace

import pytest

from theus.native_tasks import Progress
from theus.news import News
from theus.outbox import Outbox


class Task:
    """Of which only the identity counts."""


class Fixture:
    """An outbox whose news and outcomes are written down."""

    def __init__(self):
        self.lock = threading.RLock()
        self.seen = []
        self.told = 0
        self.box = Outbox(self.lock, self.finish, self.tell)

    def finish(self, task, *, success, value):
        task.done = True
        self.seen.append((task.name, value))

    def tell(self):
        self.told += 1

    def task(self, name, callback=lambda _: None):
        def on_progress(progress):
            self.seen.append((name, progress.done))
            callback(progress.done)

        task = Task()
        task.name, task.done = name, False
        task.outcome = SimpleNamespace(advance=lambda _: None)
        task.on_progress = on_progress
        task.reference = SimpleNamespace(name=name)
        return task

    def put(self, *deliveries):
        with self.lock:
            self.box.put(deliveries)


@pytest.fixture
def it():
    return Fixture()


def progress(task, done):
    return News(1, task, 0, Progress(done))


def test_all_that_has_come_is_passed_on_in_its_order(it):
    a, b = it.task("a"), it.task("b")
    it.put(progress(a, 1), progress(b, 1), (b, True, "B"), progress(a, 2), (a, True, "A"))
    it.box.deliver()
    assert it.seen == [("a", 1), ("b", 1), ("b", "B"), ("a", 2), ("a", "A")]
    assert it.told == 1
    it.box.deliver()
    assert it.told == 1  # there was nothing


def test_a_callback_that_waits_for_another_task_gets_its_outcome_and_is_not_called_meanwhile(it):
    b = it.task("b")
    running = []

    def waits(done):
        running.append(done)
        assert running == [done], "it is called while it runs"
        it.box.deliver()
        assert done > 1 or b.done
        assert not a.done
        running.pop()

    a = it.task("a", waits)
    it.put(progress(a, 1), (b, True, "B"), progress(a, 2), (a, True, "A"))
    it.box.deliver()
    assert it.seen == [("a", 1), ("b", "B"), ("a", 2), ("a", "A")]


@pytest.mark.parametrize("comes", ["before", "later"])
def test_a_callback_that_waits_for_its_own_task_gets_that_and_no_more_news(it, comes):
    def waits(done):
        it.box.deliver()
        if comes == "before":
            assert it.box.expect(a)
        else:
            assert it.box.expect(a)
            it.put((a, True, "A"))
        it.box.deliver()
        assert a.done

    a = it.task("a", waits)
    it.put(progress(a, 1), progress(a, 2), *([(a, True, "A")] if comes == "before" else []))
    it.box.deliver()
    assert it.seen == [("a", 1), ("a", "A")]


def test_only_a_callback_of_the_task_itself_has_its_outcome_come_early(it):
    def asks(_):
        seen.append(it.box.expect(b))
        other = threading.Thread(target=lambda: seen.append(it.box.expect(a)))
        other.start()
        other.join(10)

    a, b = it.task("a", asks), it.task("b")
    seen = []
    assert not it.box.expect(a)
    it.put(progress(a, 1), progress(b, 1), (a, True, "A"))
    it.box.deliver()
    assert seen == [False, False]
    assert it.seen == [("a", 1), ("b", 1), ("a", "A")]


def test_an_outcome_that_is_not_waited_for_any_more_waits_again(it):
    def waits(done):
        if done == 1:
            assert it.box.expect(a)
            it.box.deliver()
            it.box.expect_no_more(a)
            it.put((a, True, "A"))
            it.box.deliver()
            assert not a.done

    a = it.task("a", waits)
    it.put(progress(a, 1), progress(a, 2))
    it.box.deliver()
    assert it.seen == [("a", 1), ("a", 2), ("a", "A")]


def test_what_was_put_by_stays_before_what_comes(it):
    def waits(done):
        if done == 1:
            it.put(progress(a, 2))
            it.box.deliver()
            it.put(progress(a, 3))
            assert it.box.expect(a)
            it.box.deliver()

    a = it.task("a", waits)
    it.put(progress(a, 1))
    it.box.deliver()
    assert it.seen == [("a", 1), ("a", 2), ("a", 3)]


def test_while_a_callback_runs_other_threads_pass_on_other_tasks(it):
    begun, go_on = threading.Event(), threading.Event()

    def slow(done):
        if done == 1:
            begun.set()
            assert go_on.wait(10)

    a, b = it.task("a", slow), it.task("b")
    it.put(progress(a, 1))
    thread = threading.Thread(target=it.box.deliver)
    thread.start()
    assert begun.wait(10)
    it.put(progress(a, 2), (b, True, "B"), (a, True, "A"))
    it.box.deliver()
    assert it.seen == [("a", 1), ("b", "B")]  # what is a's waits for the callback
    go_on.set()
    thread.join(10)
    assert it.seen == [("a", 1), ("b", "B"), ("a", 2), ("a", "A")]


def test_what_a_callback_raises_comes_after_all_is_passed_on(it):
    class Left(BaseException):
        pass

    def leaves(task, *, success, value):
        it.seen.append(value)
        raise Left(value)

    box = Outbox(it.lock, leaves, it.tell)
    box.put([(Task(), True, 1), (Task(), True, 2)])
    with pytest.raises(Left, match="1"):
        box.deliver()
    assert it.seen == [1, 2]
