"""The guide to tasks in Rust, from ``cargo new`` to their results in Python, as it is printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/native-workers.md").read_text()
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a build of the crate and of Arrow, if there was none
@pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not there")
def test_the_guide_runs(tmp_path):
    (make, build), programs, notebooks = blocks("sh"), blocks("rust"), blocks("python")
    here = f"--path {ROOT}/rust/theus"
    make, replaced = re.subn(r"--git \S+", here, make)
    assert replaced == 1
    # The profile for which the crate's own tests were built: the other one takes minutes.
    build = build.replace(" --release", "")
    environment = {**os.environ, "CARGO_NET_OFFLINE": "true"}

    def run(*command, cwd):
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    run("sh", "-ec", make, cwd=tmp_path)
    prices = tmp_path / "prices"
    # What was built for this checkout is not built again.
    shutil.copy(ROOT / "Cargo.lock", prices)
    (prices / "target").symlink_to(TARGET)
    (prices / "src/bin").mkdir()
    for source, program in zip(["main.rs", "bin/tables.rs"], programs, strict=True):
        (prices / "src" / source).write_text(program)
    run("sh", "-ec", build, cwd=prices)
    assert len(notebooks) == len(programs)
    for notebook in notebooks:
        (prices / "notebook.py").write_text(notebook.replace("/release/", "/debug/"))
        run(sys.executable, "-W", "error", "notebook.py", cwd=prices)
