"""Runs exercise.py and its workers under valgrind; what it finds in our own library fails.

CPython, numpy and pyarrow are not built to be looked at like this, so errors count only if the
extension module or memory that it lost is in them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree as ET

OURS = "_theus"
# Functions and files under which memory is left on purpose, or errors are known not to be one.
LEFT = ("create_type_object",)  # pyo3 makes each class once, for as long as the process lives
KNOWN = ("auxv.rs",)  # rustix reads the kernel's vDSO, of which valgrind does not know
HERE = Path(__file__).resolve().parent


def ours(error):
    frames = list(error.iter("frame"))
    places = [frame.findtext(key, "") for frame in frames for key in ("fn", "file")]
    is_leak = error.findtext("kind", "").startswith("Leak")
    if any(known in place for known in (*KNOWN, *LEFT * is_leak) for place in places):
        return False
    return any(OURS in Path(frame.findtext("obj", "")).name for frame in frames)


def describe(error):
    what = error.findtext("what") or error.findtext("xwhat/text") or error.findtext("kind")
    frames = [
        f"    {frame.findtext('fn', '?')} ({frame.findtext('file', '?')}:{frame.findtext('line')})"
        for frame in error.iter("frame")
    ]
    return "\n".join([f"{error.findtext('kind')}: {what}", *frames[:12]])


def main():
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        command = ["valgrind", "--trace-children=yes", "--child-silent-after-fork=yes"]
        command += [
            "--leak-check=full",
            "--show-leak-kinds=definite",
            "--errors-for-leak-kinds=definite",
        ]
        command += ["--num-callers=30", "--xml=yes", f"--xml-file={directory}/%p.xml"]
        command += [sys.executable, str(HERE / "exercise.py")]
        environment = {**os.environ, "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, timeout=1500, check=False)
        reports = list(Path(directory).glob("*.xml"))
        errors, others, unread = [], 0, 0
        for report in reports:
            try:
                found = list(ET.parse(report).getroot().iter("error"))  # noqa: S314 - valgrind's own
            except ET.ParseError:  # of a process that was killed
                unread += 1
                continue
            errors += filter(ours, found)
            others += sum(not ours(error) for error in found)
    for error in errors:
        print(describe(error), file=sys.stderr)
    took = time.monotonic() - started
    print(
        f"{len(errors)} errors of ours and {others} of others in {len(reports) - unread} "
        f"processes, {unread} ended without a report, {took:.0f} s"
    )
    return bool(errors) or done.returncode != 0 or unread == len(reports)


if __name__ == "__main__":
    sys.exit(main())
