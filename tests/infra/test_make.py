"""What `make` says in a fresh clone, before it does anything long."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_fresh_clone_says_how_much_is_downloaded_before_it_downloads(tmp_path: Path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    steps = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    warning, install, demo = (steps.index(text) for text in ("4 GB of packages", "pip sync", "dml demo"))
    assert warning < install < demo
    (command,) = (line for line in steps.splitlines() if "pip sync" in line)
    assert "--quiet" not in command, "its progress is shown"


def test_every_target_that_make_lists_can_be_made():
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = [line.split()[0] for line in listed.splitlines()]
    assert {"setup", "demo", "check", "test", "test-slow", "docs", "up"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)
    phony = (ROOT / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0].split()
    assert set(phony) == set(targets)
