"""An owner that is killed: each of its workers removes what its session left, and ends."""

import glob
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from owner import Owner

pytestmark = pytest.mark.needs("sweep")

REACTION_S = 1.0
ESTATE = Path(__file__).with_name("estate.py")


@pytest.fixture
def lost(dialect):
    """An owner in another process, which can be killed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        estate = subprocess.Popen(
            [sys.executable, ESTATE, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        ours.settimeout(20)
        session, (budget,), _, _ = socket.recv_fds(ours, 100, 1)
    owners = []

    def start():
        owners.append(Owner(dialect, session.decode(), budget, pid=estate.pid))
        owners[-1].greet()
        owners[-1].send_state(1)
        return owners[-1]

    start.estate, start.session = estate, session.decode()
    yield start
    os.close(budget)
    estate.kill()
    estate.wait(10)
    for owner in owners:
        owner.close()


def names(session):
    return glob.glob(f"/dev/shm/*{session}*")


def assert_all_gone(lost, owners):
    assert names(lost.session)
    killed = time.monotonic()
    lost.estate.kill()
    lost.estate.wait(10)  # a zombie has ended too, but others may look
    codes = [owner.exit_code() for owner in owners]
    assert time.monotonic() - killed < REACTION_S
    assert codes == [1] * len(owners)
    assert not names(lost.session)


def test_idle_workers_sweep_and_end(lost):
    assert_all_gone(lost, [lost(), lost()])


@pytest.mark.parametrize("polite", [True, False])
def test_a_worker_that_runs_a_task_sweeps_and_ends(lost, polite):
    owner = lost()
    owner.wait_until_running(owner.send_task("sleep", seconds=60, polite=polite))
    assert_all_gone(lost, [owner])


def test_a_worker_whose_owner_no_longer_talks_waits_for_its_end(lost):
    owner = lost()
    assert owner.call("nothing") is None
    owner.channel.close()
    time.sleep(0.2)
    assert owner.process.poll() is None
    assert_all_gone(lost, [owner])


def test_a_stopped_worker_is_not_waited_for_by_others(lost):
    stopped, other = lost(), lost()
    stopped.process.send_signal(signal.SIGSTOP)
    assert_all_gone(lost, [other])
    stopped.process.send_signal(signal.SIGCONT)
    assert stopped.exit_code() == 1
