"""What the doctor makes of machines that are made up, and of this one."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from theus.cli import app, doctor
from theus.heavy.sessions import SessionInfo

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units     
Max file size             {file_size:<20} unlimited            bytes     
Max open files            {files:<20} 524288               files     
Max locked memory         8388608              8388608              bytes     
Max address space         {space:<20} unlimited            bytes     
"""  # noqa: W291 - as the kernel writes it


@pytest.fixture
def root(tmp_path):
    """Make a machine up: a folder in place of /, with a function that writes its files."""

    class Root(type(tmp_path)):
        def put(self, path, text):
            place = self / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)

    root = Root(tmp_path)
    (root / "dev/shm").mkdir(parents=True)
    return root


def only(findings):
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("release", "level"),
    [("6.18.44", "ok"), ("5.3.0-generic", "ok"), ("5.2.9", "error"), ("4.19", "error")],
)
def test_kernel(root, release, level):
    root.put("proc/sys/kernel/osrelease", release + "\n")
    assert doctor.check_kernel(root).level == level


def test_a_container_with_the_usual_64_mib_is_told_so(root, monkeypatch):
    line = "36 25 0:32 / /dev/shm rw,nosuid,nodev,noexec - tmpfs shm rw,size=65536k,inode64\n"
    root.put("proc/self/mountinfo", line)
    size = os.statvfs_result((4096, 4096, 16384, 16000, 16000, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: size)
    finding = only(doctor.check_shared_memory(root))
    assert (finding.level, finding.value) == ("warning", 64 << 20)
    assert "size=65536k" in finding.message
    assert "--shm-size" in finding.advice


def test_shared_memory_on_a_disk_or_full(root, monkeypatch):
    root.put("proc/self/mountinfo", "36 25 0:32 / /dev/shm rw - ext4 /dev/sda1 rw\n")
    size = os.statvfs_result((4096, 4096, 1 << 20, 9, 9, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: size)
    disk, full = doctor.check_shared_memory(root)
    assert (disk.level, disk.value) == ("warning", "ext4")
    assert (full.level, full.value) == ("warning", 9 * 4096)
    assert "theus sweep" in full.advice


@pytest.mark.parametrize("version", [1, 2])
def test_a_tight_control_group_is_a_warning(root, version):
    folder, kind, names, membership = {
        1: ("memory", "cgroup cgroup rw,memory", ("limit_in_bytes", "usage_in_bytes"), "4:memory:"),
        2: ("", "cgroup2 cgroup2 rw", ("max", "current"), "0::"),
    }[version]
    point = Path("/sys/fs/cgroup", folder)
    root.put("proc/self/cgroup", f"{membership}/job\n")
    root.put("proc/self/mountinfo", f"31 23 0:28 / {point} rw - {kind}\n")
    limit, usage = (f"sys/fs/cgroup/{folder}/job/memory.{name}" for name in names)
    root.put(limit, str(1 << 30))
    root.put(usage, str(1 << 29))
    assert doctor.check_control_group(root).level == "ok"
    root.put(usage, str((1 << 30) - (80 << 20)))
    found = doctor.check_control_group(root)
    assert (found.level, found.value) == ("warning", (80 << 20) - (1 << 25))
    root.put(limit, "max")
    assert doctor.check_control_group(root).message == "no control group limits memory"


@pytest.mark.parametrize(
    ("mount", "policy", "has"),
    [
        ("rw", "always [never] deny force", True),
        ("rw,huge=within_size", "always [never] deny force", True),
        ("rw,huge=always", "always never [deny] force", False),
        ("rw", "always never deny [force]", True),
        ("rw", "", False),
    ],
)
def test_huge_pages_are_asked_for_unless_they_are_denied(root, mount, policy, has):
    root.put("proc/self/mountinfo", f"36 25 0:32 / /dev/shm rw - tmpfs tmpfs {mount}\n")
    root.put("sys/kernel/mm/transparent_hugepage/shmem_enabled", policy)
    finding = doctor.check_huge_pages(root)
    assert finding.level == "ok"
    assert ("ask for huge pages" in finding.message) == has
    assert bool(finding.advice) != has


def test_remove_ipc(root):
    def level(user=1000):
        return doctor.check_remove_ipc(root, user).level

    assert level() == "ok"  # no systemd
    (root / "run/systemd/system").mkdir(parents=True)
    assert level() == "warning"  # the default
    assert level(user=0) == "ok"
    root.put("etc/systemd/logind.conf", "[Login]\n#RemoveIPC=no\n")
    assert level() == "warning"
    root.put("etc/systemd/logind.conf", "[Login]\nRemoveIPC=no\n")
    assert level() == "ok"
    root.put("usr/lib/systemd/logind.conf.d/50-vendor.conf", "[Login]\nRemoveIPC=yes\n")
    assert level() == "warning"  # drop-ins come after the main file
    root.put("etc/systemd/logind.conf.d/50-vendor.conf", "")
    assert level() == "ok"  # one of the same name hides it
    root.put("etc/login.defs", "SYS_UID_MAX   2000\n")
    root.put("etc/systemd/logind.conf", "")
    assert level() == "ok"
    assert level(user=2001) == "warning"


def test_limits(root):
    def levels(**limits):
        usual = {"file_size": "unlimited", "files": "1024", "space": "unlimited"}
        root.put("proc/self/limits", LIMITS.format(**{**usual, **limits}))
        return {finding.check: finding.level for finding in doctor.check_limits(root)}

    assert set(levels().values()) == {"ok"}
    assert levels(files="256")["descriptors"] == "warning"
    assert levels(space="4294967296")["address-space"] == "warning"
    assert levels(file_size="1048576")["file-size"] == "warning"
    assert levels(files="unlimited")["descriptors"] == "ok"


@pytest.mark.parametrize(
    ("file", "check", "good", "bad"),
    [
        ("max_map_count", doctor.check_mappings, "65530", "4096"),
        ("overcommit_memory", doctor.check_overcommit, "0", "2"),
    ],
)
def test_kernel_settings(root, file, check, good, bad):
    root.put(f"proc/sys/vm/{file}", good)
    assert check(root).level == "ok"
    root.put(f"proc/sys/vm/{file}", bad)
    found = check(root)
    assert found.level == "warning"
    assert f"sysctl -w vm.{file}" in found.advice


def test_a_directory_is_tried(root, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    levels = [
        {finding.level for finding in doctor.check_directory(place)}
        for place in (root / "dev/shm", tmp_path / "nowhere", tmp_path / "open", Path("/proc/self"))
    ]
    assert levels[1:] == [{"error"}] * 3
    assert levels[0] in ({"ok"}, {"error"})  # as the file system of temporary files is
    assert not list((root / "dev/shm").iterdir())
    assert only(doctor.check_directory(Path("/dev/shm"))).value == "tmpfs"


def test_leftovers(root):
    shared, user = root / "dev/shm", os.geteuid()
    dead, unlocked, live = "a" * 12, "b" * 12, "c" * 12
    for name in [f"theus-{dead}-1", f"theus-{unlocked}-0", f"theus-{live}.lock", "theus-note"]:
        root.put(f"dev/shm/{name}", "")
    os.mkfifo(shared / f"theus-{'d' * 12}-0")
    (shared / f"theus-{'e' * 12}-0").symlink_to("/etc/passwd")
    (shared / f"theus-{'f' * 12}.lock").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        descriptor = os.open(shared, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{descriptor}/theus-{'g' * 12}-1")
        os.close(descriptor)
    (root / "tmp").mkdir()
    for name in ["theus-my-notes", f"theus-{dead}.new", f"theus-{live}.lock"]:
        root.put(f"tmp/{name}", "")
    known = [
        SessionInfo(dead, alive=False, entries=1, nbytes=9, user=user),
        SessionInfo(unlocked, alive=True, entries=0, nbytes=0, user=user),
        SessionInfo(live, alive=True, entries=0, nbytes=0, user=user),
    ]
    found = list(doctor.check_leftovers([shared, root / "tmp"], known, user))
    told = [(finding.level, finding.check, finding.value) for finding in found]
    assert told == [
        ("warning", "dead-session", dead),
        ("warning", "lock-file", unlocked),
        *[("warning", "leftovers", "planted")] * 4,
        *[("warning", "leftovers", "name")] * 2,
        ("ok", "sessions", 2),
    ]
    assert all(finding.advice for finding in found[:-1])
    # To another user all of it is a stranger's, and no matter of theirs, unless it is no name.
    strange = list(doctor.check_leftovers([shared, root / "tmp"], [], user + 1))
    assert [finding.value for finding in strange] == ["foreign", "foreign", 0]


def test_the_command_line_says_it_and_exits_with_1_for_an_error(engine, capsys):
    engine.heavy.put("x", np.arange(9))
    assert app.main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["healthy"]
    assert {tuple(finding) for finding in answer["findings"]} == {
        ("level", "check", "message", "value", "advice")
    }
    checks = {finding["check"] for finding in answer["findings"]}
    assert {"kernel", "directory", "shared-memory", "remove-ipc", "mappings"} <= checks
    assert app.main(["doctor", "--spill-dir", "/nowhere"]) == 1
    assert "error    /nowhere: it is not there" in capsys.readouterr().out
