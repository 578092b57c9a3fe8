"""Things in a directory that bear our prefix, and which of them are a session's.

Everybody may put names into ``/dev/shm`` and the directory for temporary files. Nothing here is
opened or followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Found", "survey"]

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where segments lie

_NAME = re.compile(r"theus-([a-z2-7]{12})(\.lock|-(?:0|[1-9][0-9]{0,19}))")
_LIKE_A_NAME = re.compile(r"theus-[a-z2-7]{12}[.-]")

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One name with our prefix.

    Attributes
    ----------
    path : Path
        Where it is.
    session : str or None
        The session that it would belong to; None if it is no name that theus gives.
    is_lock : bool
        Whether it is that session's lock file.
    why : "foreign", "planted", "name" or None
        Why no session of this user owns it: another user's, no regular file, no valid name.
    message : str
        The same for people; empty if it is a session's.
    """

    path: Path
    session: str | None
    is_lock: bool
    why: Literal["foreign", "planted", "name"] | None
    message: str


def survey(directories: Iterable[Path], user: int | None = None) -> Iterator[Found]:
    """Yield what bears our prefix in `directories`.

    That is all of it in shared memory, and elsewhere what looks like a session's.

    Parameters
    ----------
    directories : iterable of Path
        The first one is that of shared memory.
    user : int, optional
        Whose files are not foreign: by default this process's.
    """
    user = os.geteuid() if user is None else user
    for number, directory in enumerate(dict.fromkeys(directories)):
        try:
            paths = sorted(directory.iterdir())
        except OSError:
            continue
        for path in paths:
            if path.name.startswith("theus-") and (number == 0 or _LIKE_A_NAME.match(path.name)):
                found = _describe(path, user, only_locks=number > 0)
                if found is not None:
                    yield found


def _describe(path: Path, user: int, *, only_locks: bool) -> Found | None:
    try:
        status = path.lstat()
    except OSError:
        return None  # gone by now
    match = _NAME.fullmatch(path.name)
    is_lock = match is not None and match[2] == ".lock"
    session = match[1] if match and (is_lock or not only_locks) else None
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if status.st_uid != user:
        what = kind or "a file"
        return Found(path, session, is_lock, "foreign", f"{what} of user {status.st_uid}")
    if kind is not None:
        return Found(path, session, is_lock, "planted", f"{kind}, which theus does not make")
    if session is None:
        return Found(path, session, is_lock, "name", "no name that theus gives")
    return Found(path, session, is_lock, None, "")
