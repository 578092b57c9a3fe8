"""Whether this machine lets theus work well, and what to do where it does not: ``theus doctor``.

Each check reads the files of the system below a root, which tests make up.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from theus import _theus
from theus.cli.leftovers import SHARED_MEMORY, survey
from theus.errors import TheusError
from theus.heavy.sessions import SessionInfo, sessions

__all__ = ["Finding", "examine"]

_SMALL_BYTES = 512 << 20
_FEW_DESCRIPTORS = 512
_DEFAULT_MAPPINGS = 65_530
_KERNEL = (5, 3)  # the first one with pidfd_open

_HUGE_VARIABLE = "THEUS_HUGE_PAGES"
_HUGE_ADVICE = {
    "absent": "nothing needs huge pages; a kernel with transparent ones, 6.1 or later, has them",
    "deny": "nothing needs them; to try: echo never > "
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
}

_SYSTEM_FOLDERS = ("etc", "run", "usr/local/lib", "usr/lib")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    level : "ok", "warning" or "error"
        An error keeps theus from working, a warning may cost data, speed or room.
    check : str
        The check, one word that stays the same.
    message : str
        What was found.
    value : str or int or None
        What was measured.
    advice : str
        What to do about it; may be empty.
    """

    level: Literal["ok", "warning", "error"]
    check: str
    message: str
    value: str | int | None = None
    advice: str = ""


def examine(
    spill_dirs: Iterable[Path] = (), root: Path = Path("/"), user: int | None = None
) -> Iterator[Finding]:
    """Yield what each check finds.

    Parameters
    ----------
    spill_dirs : iterable of Path
        Directories that are to hold what does not fit into shared memory.
    root : Path
        Where ``/proc``, ``/sys``, ``/etc``, ``/run`` and ``/dev/shm`` are looked for.
    user : int, optional
        Whose point of view is taken: by default this process's user.
    """
    user = os.geteuid() if user is None else user
    shared = root / "dev/shm"
    yield check_kernel(root)
    yield from check_directory(shared)
    yield from check_shared_memory(root)
    for directory in spill_dirs:
        yield from check_directory(directory)
    yield check_control_group(root)
    yield check_huge_pages(root)
    yield check_remove_ipc(root, user)
    yield from check_limits(root)
    yield check_mappings(root)
    yield check_overcommit(root)
    yield from check_leftovers([shared, Path(tempfile.gettempdir())], sessions(), user)


def check_kernel(root: Path) -> Finding:
    """Look at the kernel's version."""
    release = _read(root / "proc/sys/kernel/osrelease") or "unknown"
    version = re.match(r"(\d+)\.(\d+)", release)
    if version and (int(version[1]), int(version[2])) >= _KERNEL:
        return Finding("ok", "kernel", f"kernel {release}", release)
    advice = "use Linux {}.{} or later".format(*_KERNEL)
    return Finding("error", "kernel", f"kernel {release} has no pidfds", release, advice)


def check_directory(directory: Path) -> Iterator[Finding]:
    """Try in `directory` what segments need."""
    try:
        report = _theus.probe_directory(directory)
    except (TheusError, OSError) as error:
        yield Finding("error", "directory", f"{directory} cannot be tried: {error}")
        return
    for code, text in report.missing:
        yield Finding("error", "directory", f"{directory}: {text}", code, "use another directory")
    if not report.missing:
        message = (
            f"{directory}: {report.file_system}, {format_bytes(report.free_bytes)} free; nameless "
            "files, reservations and leases work"
        )
        yield Finding("ok", "directory", message, report.file_system)


def check_shared_memory(root: Path) -> Iterator[Finding]:
    """Look at the size of ``/dev/shm``."""
    shared = root / "dev/shm"
    kind, options = _mount_of(SHARED_MEMORY, root)
    try:
        status = os.statvfs(shared)
    except OSError:
        return  # `check_directory` says so
    total = status.f_blocks * status.f_frsize
    free = status.f_bavail * status.f_frsize
    size = next((option for option in options if option.startswith("size=")), "no size= option")
    message = f"{SHARED_MEMORY} has {format_bytes(total)} ({size}), {format_bytes(free)} of it free"
    grow = "mount -o remount,size=8g /dev/shm; for a container, docker run --shm-size=8g"
    if kind not in {"tmpfs", ""}:
        text = f"{SHARED_MEMORY} is {kind}, not tmpfs: what lies there may be written to a disk"
        yield Finding("warning", "shared-memory", text, kind, "mount a tmpfs there")
    if total < _SMALL_BYTES:
        yield Finding("warning", "shared-memory", message, total, grow)
    elif free < total // 20:
        advice = f"see theus ls, theus sweep and ls -l /dev/shm; or {grow}"
        yield Finding("warning", "shared-memory", message, free, advice)
    else:
        yield Finding("ok", "shared-memory", message, free)


def check_control_group(root: Path) -> Finding:
    """Look at the memory that the control groups leave."""
    found = _theus.memory_limit(root)
    if found is None:
        return Finding("ok", "control-group", "no control group limits memory")
    group, limit, available = found
    message = (
        f"control group {group} allows {format_bytes(limit)}, of which {format_bytes(available)} "
        "can be reserved"
    )
    if available < limit // 10:
        advice = "free memory, or raise the group's limit: shared memory counts against it"
        return Finding("warning", "control-group", message, available, advice)
    return Finding("ok", "control-group", message, available)


def check_huge_pages(root: Path) -> Finding:
    """Look at whether segments may have huge pages, which are made, mapped and freed faster.

    Theus asks for them one by one, which every policy but ``deny`` allows.
    """
    text = _read(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled") or ""
    chosen = re.search(r"\[(\w+)\]", text)
    policy = chosen[1] if chosen else "absent"
    _, options = _mount_of(SHARED_MEMORY, root)
    mount = next((option[5:] for option in options if option.startswith("huge=")), "never")
    value = f"huge={mount}, shmem_enabled={policy}"
    if policy in {"absent", "deny"}:
        message = f"large segments have small pages only ({value})"
        return Finding("ok", "huge-pages", message, value, _HUGE_ADVICE[policy])
    message = f"large segments ask for huge pages ({value}), unless {_HUGE_VARIABLE}=never"
    return Finding("ok", "huge-pages", message, value)


def check_remove_ipc(root: Path, user: int) -> Finding:
    """Look at whether systemd-logind removes the user's shared memory at logout."""
    if not (root / "run/systemd/system").is_dir():
        return Finding("ok", "remove-ipc", "no systemd: nobody removes shared memory at logout")
    last = re.search(r"^SYS_UID_MAX\s+(\d+)", _read(root / "etc/login.defs") or "", re.MULTILINE)
    if user <= (int(last[1]) if last else 999):
        return Finding("ok", "remove-ipc", f"user {user} is a system user: RemoveIPC spares it")
    value = _remove_ipc(root)
    if value in {"0", "no", "n", "false", "f", "off"}:
        return Finding("ok", "remove-ipc", "RemoveIPC is off", value)
    return Finding(
        "warning",
        "remove-ipc",
        "systemd-logind removes this user's shared memory at logout, that of running jobs too",
        value,
        "loginctl enable-linger, or RemoveIPC=no in /etc/systemd/logind.conf.d/theus.conf",
    )


def _remove_ipc(root: Path) -> str:
    """Return the setting as logind.conf(5) says it is found."""
    folders = [root / folder / "systemd" for folder in _SYSTEM_FOLDERS]
    main = [folder / "logind.conf" for folder in folders]
    drop_ins = {
        path.name: path
        for folder in reversed(folders)  # of one name, the most important one counts
        for path in (folder / "logind.conf.d").glob("*.conf")
    }
    value = "yes"
    for path in [*filter(Path.is_file, main)][:1] + [drop_ins[name] for name in sorted(drop_ins)]:
        for setting in re.findall(r"^\s*RemoveIPC\s*=\s*(\S*)", _read(path) or "", re.MULTILINE):
            value = setting.lower() or "yes"
    return value


def check_limits(root: Path) -> Iterator[Finding]:
    """Look at the limits of this process (ulimit)."""
    limits = _limits(root)
    descriptors = limits.get("Max open files", "unlimited")
    message = f"ulimit -n: {descriptors} descriptors; each worker takes three, each draft one"
    if descriptors.isdecimal() and int(descriptors) < _FEW_DESCRIPTORS:
        advice = f"ulimit -n {2 * _FEW_DESCRIPTORS} or more, where there are many workers or drafts"
        yield Finding("warning", "descriptors", message, int(descriptors), advice)
    else:
        yield Finding("ok", "descriptors", message, descriptors)
    for check, name, option, what in (
        ("address-space", "Max address space", "-v", "mappings, whether resident or not"),
        ("file-size", "Max file size", "-f", "each entry"),
    ):
        value = limits.get(name, "unlimited")
        message = f"ulimit {option}: {value}"
        if value == "unlimited":
            yield Finding("ok", check, message, value)
        else:
            advice = f"ulimit {option} unlimited: it limits {what}"
            yield Finding("warning", check, f"{message} bytes", int(value), advice)
    locked = limits.get("Max locked memory", "unlimited")
    yield Finding("ok", "locked-memory", f"ulimit -l: {locked}; theus locks no memory", locked)


def check_mappings(root: Path) -> Finding:
    """Look at how many mappings a process may have: one for each entry that it looks at."""
    text = _read(root / "proc/sys/vm/max_map_count")
    if text is None:
        return Finding("warning", "mappings", "vm.max_map_count cannot be read")
    message = f"vm.max_map_count {text}: each entry that a process looks at takes one"
    if int(text) < _DEFAULT_MAPPINGS:
        advice = "sysctl -w vm.max_map_count=1048576"
        return Finding("warning", "mappings", message, int(text), advice)
    return Finding("ok", "mappings", message, int(text))


def check_overcommit(root: Path) -> Finding:
    """Look at how the kernel counts memory that is promised and not used."""
    text = _read(root / "proc/sys/vm/overcommit_memory") or "unknown"
    message = f"vm.overcommit_memory {text}"
    if text == "2":
        advice = "sysctl -w vm.overcommit_memory=0, or leave room: all shared memory is counted"
        return Finding("warning", "overcommit", f"{message}: strict", text, advice)
    return Finding("ok", "overcommit", message, text)


def check_leftovers(
    directories: list[Path], known: Iterable[SessionInfo], user: int
) -> Iterator[Finding]:
    """Look for what nobody owns among the names with our prefix; the first directory is the shm."""
    found = list(survey(directories, user))
    locked = {item.session for item in found if item.is_lock and item.why is None}
    own = [info for info in known if info.user == user]
    for info in own:
        if not info.alive:
            message = f"session {info.id} is dead and left {format_bytes(info.nbytes)}"
            yield Finding("warning", "dead-session", message, info.id, "theus sweep")
        elif info.id not in locked:
            message = f"session {info.id} lives, and somebody removed its lock file"
            advice = "its owner puts it back with its next entry; let tmpreaper spare theus-*"
            yield Finding("warning", "lock-file", message, info.id, advice)
    foreign = {item.session for item in found if item.why == "foreign"}
    foreign -= {info.id for info in own}
    for item in found:
        if item.why is None or (item.why == "foreign" and item.session in foreign - {None}):
            continue
        advice = "theus leaves it alone; see who made it, and remove it by hand"
        text = f"{item.path}: {item.message}"
        yield Finding("warning", "leftovers", text, item.why, advice)
    alive = sum(info.alive for info in own)
    others = len(foreign - {None})
    message = f"sessions that live: {alive} of this user; with names of other users: {others}"
    yield Finding("ok", "sessions", message, alive)


def format_bytes(number: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":  # noqa: PLR2004 - the step between units
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _limits(root: Path) -> Mapping[str, str]:
    """Return the soft limits by the kernel's names for them."""
    lines = (_read(root / "proc/self/limits") or "").splitlines()[1:]
    fields = (re.split(r"\s{2,}", line) for line in lines)
    return {name: soft for name, soft, *_ in fields}


def _mount_of(point: Path, root: Path) -> tuple[str, list[str]]:
    """Return the kind and the options of the file system mounted at `point`, the last one."""
    kind, options = "", list[str]()
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        place, _, rest = line.partition(" - ")
        if place.split(" ")[4] == str(point):
            kind, _, settings = rest.split(" ", 2)
            options = settings.split(",")
    return kind, options
