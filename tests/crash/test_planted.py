"""What others put into shared memory stops nothing, and is not opened, followed or removed."""

import contextlib
import glob
import itertools
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import theus
from theus.cli.app import main

SHARED = Path("/dev/shm")
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")


def a_session():
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(12))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def make_foreign(path):
    path.write_bytes(b"x" * 100)
    os.chown(path, NOBODY, NOBODY)


KINDS = {
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "socket": make_socket,
    "dangling": lambda path: path.symlink_to("/nowhere/at/all"),
    "passwd": lambda path: path.symlink_to("/etc/passwd"),
}
if os.geteuid() == 0:
    KINDS["foreign"] = make_foreign


@pytest.fixture
def plant():
    """Make things in shared memory; they are looked at again, and removed, at the end."""
    planted = {}

    def make(kind, name, directory=SHARED):
        path = directory / name
        KINDS[kind](path)
        planted[path] = path.lstat()
        return path

    yield make
    changed = []
    for path, before in planted.items():
        after = path.lstat() if os.path.lexists(path) else None
        if after is None or (after.st_ino, after.st_size, after.st_mtime_ns) != (
            before.st_ino, before.st_size, before.st_mtime_ns,
        ):  # fmt: skip
            changed.append(path)
        if after is not None:
            path.rmdir() if stat.S_ISDIR(after.st_mode) else path.unlink()
    assert not changed


@pytest.fixture
def dead(python):
    """Make a session whose owner was killed, with three entries; return its id."""
    done = python(
        "import os, signal, numpy as np, theus\n"
        "engine = theus.TheusEngine()\n"
        "for name in 'abc':\n    engine.heavy.put(name, np.arange(9))\n"
        "print(engine._session.id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    return done.stdout.strip()


def names_of(session):
    return sorted(os.path.basename(path) for path in glob.glob(f"/dev/shm/theus-{session}*"))


def info_of(session):
    return next((info for info in theus.sessions() if info.id == session), None)


def test_nothing_that_is_planted_stops_anybody(plant, capsys):
    places = itertools.product(("{}.lock", "{}-0", "{}-3"), KINDS)
    planted = [plant(kind, "theus-" + place.format(a_session())) for place, kind in places]
    temporary = Path(tempfile.gettempdir())
    planted += [plant(kind, f"theus-{a_session()}.lock", temporary) for kind in KINDS]
    with theus.TheusEngine(workers=1) as engine:
        engine.heavy.put("x", np.arange(9))
        assert engine.submit(lambda ctx: int(ctx.heavy["x"].sum())).result(30) == 36
        assert theus.sweep() == []
        for command in ["ls", "sweep", "doctor"]:
            assert main([command]) == 0
            out = capsys.readouterr().out
            said = [str(path) in out for path in planted]
            # Other users' names are usual on a machine that is shared.
            assert sum(said) == {"ls": 0, "sweep": 4 * len(KINDS), "doctor": 20}[command], out
    mine = [info for info in theus.sessions() if info.user == os.geteuid()]
    assert mine == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_no_segment(plant, kind):
    path = plant(kind, f"theus-{a_session()}-1")
    expected = PermissionError if kind == "foreign" else theus.CorruptSegmentError
    with pytest.raises(expected, match=str(path)):
        theus.open(str(path))
    assert main(["inspect", str(path)]) == 1
    session = path.name.split("-")[1]
    plant(kind, f"theus-{session}-0")
    with pytest.raises((expected, theus.SegmentNotFoundError)):
        theus.open(f"{session}/x")


def test_what_lies_beside_a_dead_session_does_not_keep_it(plant, dead):
    beside = [plant(kind, f"theus-{dead}-{number}").name for number, kind in enumerate(KINDS, 10)]
    removed = theus.sweep()
    assert sorted(removed) == [f"theus-{dead}-{number}" for number in range(4)] + [
        f"theus-{dead}.lock"
    ]
    assert names_of(dead) == sorted(beside)


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_of_its_lock_a_dead_session_is_swept_all_the_same(plant, dead, kind):
    lock = SHARED / f"theus-{dead}.lock"
    lock.unlink()
    plant(kind, lock.name)
    assert not info_of(dead).alive
    assert len(theus.sweep()) == 4
    assert names_of(dead) == [lock.name]


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_of_its_lock_a_living_session_goes_on(plant, engine, kind):
    lock = SHARED / f"theus-{engine._session.id}.lock"
    lock.unlink()
    path = plant(kind, lock.name)
    assert info_of(engine._session.id).alive
    engine.heavy.put("x", np.arange(9))
    assert theus.sweep() == []
    assert engine.heavy["x"].sum() == 36
    assert os.path.lexists(path)


def test_a_lock_that_an_admin_removed_comes_back(engine, capsys):
    lock = SHARED / f"theus-{engine._session.id}.lock"
    lock.unlink()
    assert theus.sweep() == []
    assert main(["doctor"]) == 0
    assert "somebody removed its lock file" in capsys.readouterr().out
    engine.heavy.put("x", np.arange(9))
    assert lock.exists()
    assert info_of(engine._session.id).alive


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_taken_are_passed_over(plant, engine, kind):
    first = engine.heavy.put("x", np.arange(9))
    for number in range(2, 5):
        plant(kind, f"theus-{engine._session.id}-{number}")
    second = engine.heavy.put("y", np.arange(4))
    assert engine.submit(lambda ctx, a, b: int(a.sum() + b.sum()), a=first, b=second).result() == 42


def test_a_hard_link_loses_its_name_and_no_more(tmp_path, engine):
    target = SHARED / f"precious-{os.getpid()}"
    target.write_bytes(b"precious")
    try:
        os.link(target, SHARED / f"theus-{a_session()}-1")
        assert len(theus.sweep()) == 1
        assert target.read_bytes() == b"precious"
        # A living session's lock under another's name keeps that one, too, and harms nobody.
        other = SHARED / f"theus-{a_session()}.lock"
        os.link(SHARED / f"theus-{engine._session.id}.lock", other)
        assert theus.sweep() == []
        engine.close()
        assert theus.sweep() == [other.name]
    finally:
        target.unlink()


def test_garbage_under_valid_names_is_swept_and_near_names_are_left():
    first, second, third = a_session(), a_session(), a_session()
    ours = [f"theus-{first}.lock", f"theus-{first}-1", f"theus-{second}-0", f"theus-{third}-77"]
    near = [
        "theus-", "theus-lock", f"theus-{first}", f"theus-{first}-", f"theus-{first}-01",
        f"theus-{first}-1.bak", f"theus-{first}.lock2", f"theus-{first[:-1]}-1", f"Theus-{first}-1",
        f"theus-{first}x-1", f"theus-{first.upper()}-1", f"theus-{first}-{2**64}",
        f"theus-{first}-+1", f"theus-{first}-1\n", f"theus-{first}-" + "9" * 200,
    ]  # fmt: skip
    made = [os.fsencode(name) for name in [*ours, *near]] + [b"theus-\xff\xfe-1"]
    try:
        for number, name in enumerate(made):
            Path(os.fsdecode(b"/dev/shm/" + name)).write_bytes(b"\0garbage" * (number % 3))
        assert sorted(theus.sweep()) == sorted(ours)
        assert main(["doctor"]) == main(["ls"]) == 0
        assert all(os.path.lexists(SHARED / name) for name in near)
    finally:
        for name in made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(b"/dev/shm/" + name)


def test_copies_of_names_elsewhere_kill_nobody(engine):
    engine.heavy.put("x", np.arange(9))
    temporary = Path(tempfile.gettempdir())
    copies = [Path(shutil.copy(path, temporary)) for path in glob.glob("/dev/shm/theus-*")]
    huge = temporary / f"theus-{a_session()}.lock"
    huge.touch()
    os.truncate(huge, 1 << 42)
    try:
        assert theus.sweep() == [huge.name]
        assert engine.heavy["x"].sum() == 36
        assert os.path.exists(engine.heavy.path("x"))
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)


def test_an_engine_starts_without_a_directory_for_temporary_files(tmp_path):
    source = "import theus\nwith theus.TheusEngine() as engine:\n    assert theus.sweep() == []"
    for place in [tmp_path / "nowhere", "/etc/passwd"]:
        environment = {**os.environ, "TMPDIR": str(place)}
        subprocess.run([sys.executable, "-c", source], check=True, timeout=30, env=environment)


STRANGER = """
import os, signal, sys
import numpy as np, pyarrow, theus, theus.cli.app
os.setgroups([]), os.setgid({user}), os.setuid({user})
def reads(path):
    for look in (theus.open, lambda path: os.close(os.open(path, os.O_RDONLY))):
        try:
            look(path)
        except PermissionError:
            continue
        return True
    return False
engine = theus.TheusEngine()
engine.heavy.put("secret", np.arange(9))
print(engine._session.id, flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == "reads":
        print(reads(words[1]), flush=True)
    elif words[0] == "sweep":
        print(theus.sweep(), flush=True)
    elif words[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@as_root
def test_two_users_see_names_and_nothing_else(dead, capsys):
    command = [sys.executable, "-c", STRANGER.format(user=NOBODY)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with theus.TheusEngine() as engine, subprocess.Popen(command, **pipes) as stranger:
        try:
            engine.heavy.put("x", np.arange(9))
            theirs = stranger.stdout.readline().strip()

            def ask(*words):
                print(*words, file=stranger.stdin, flush=True)
                return stranger.stdout.readline().strip()

            info = info_of(theirs)
            assert (info.user, info.alive, info.entries) == (NOBODY, True, 1)
            paths = glob.glob(f"/dev/shm/theus-{theirs}*")
            assert {stat.S_IMODE(os.stat(path).st_mode) for path in paths} == {0o600}
            with pytest.raises(PermissionError, match="65534"):
                theus.open(f"/dev/shm/theus-{theirs}-1")
            assert ask("reads", engine.heavy.path("x")) == "False"
            assert ask("sweep") == "[]"
            assert len(names_of(engine._session.id)) == 3
            assert main(["ls"]) == 0
            assert f"user {NOBODY}" in capsys.readouterr().out
            assert not names_of(dead)
            assert len(names_of(theirs)) == 3
            print("die", file=stranger.stdin, flush=True)
            stranger.wait(10)
            assert not info_of(theirs).alive
            assert theus.sweep() == []
            assert len(names_of(theirs)) == 3
        finally:
            stranger.kill()
            # The package loads its parts when asked, from where this user may not look.
            load = "import os, theus; sweep = theus.sweep; "
            sweep = f"{load}os.setuid({NOBODY}); print(sweep())"
            done = subprocess.run(
                [sys.executable, "-c", sweep], capture_output=True, text=True, timeout=30,
                check=True,
            )  # fmt: skip
    assert done.stdout.count(theirs) == 3


def test_a_trial_that_was_cut_short_is_no_session_and_is_swept(tmp_path):
    trials = [directory / f"theus-{a_session()}.lock" for directory in (SHARED, tmp_path)]
    for trial in trials:
        trial.touch(mode=0o600)
    assert not {info.id for info in theus.sessions()} & {t.name[6:18] for t in trials}
    assert {trial.name for trial in trials} <= set(theus.sweep(tmp_path))
    assert not any(trial.exists() for trial in trials)
