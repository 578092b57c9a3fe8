"""What a result was measured on, with nothing that names the machine or its user."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = [
    "theus", "numpy", "pyarrow", "pandas", "joblib", "ray", "distributed", "cloudpickle",
]  # fmt: skip


def describe():
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_bytes("MemTotal") / (1 << 30), 1),
        "kernel": platform.release(),
        "huge_pages_of_shared_memory": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "python": platform.python_version(),
        "commit": _commit(),
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def spare_bytes():
    """Return what could be put into shared memory now."""
    shared = os.statvfs("/dev/shm")  # noqa: S108 - where everybody's data lie
    return min(_memory_bytes("MemAvailable"), shared.f_bavail * shared.f_frsize)


def load():
    """Return the load of the last minute: above the cores, somebody else was measured, too."""
    return round(os.getloadavg()[0], 2)


def sentence(machine):
    """Return the description in one line."""
    kind = "virtual machine" if machine["virtual"] else "machine"
    return (
        f"{machine['cores']} cores of a {machine['processor']} ({kind}), "
        f"{machine['memory_gib']:g} GiB, Linux {machine['kernel']}, Python {machine['python']}, "
        f"commit {machine['commit']}, {machine['measured']}"
    )


def _memory_bytes(field):
    line = Path("/proc/meminfo").read_text().partition(f"{field}:")[2]
    return int(line.split()[0]) * 1024


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _chosen(path):
    try:
        return Path(path).read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit():
    def git(*arguments):
        here = Path(__file__).parent
        done = subprocess.run(
            ["/usr/bin/env", "git", *arguments],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/python", ":/rust")
        return git("rev-parse", "--short", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
