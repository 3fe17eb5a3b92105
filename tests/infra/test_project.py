"""What the project says of itself: its license, its version, its types, and how to change it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import dml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def test_the_license_is_the_one_that_is_named():
    assert PROJECT["license"] == "Apache-2.0"
    assert [(ROOT / file).read_text().split("\n")[1].strip() for file in PROJECT["license-files"]] == [
        "Apache License"
    ]


@pytest.mark.parametrize("package", ["dml", "flows"])
def test_type_checkers_of_others_read_our_types(package):
    assert (ROOT / package / "py.typed").is_file()


def test_the_version_is_that_of_the_project():
    assert dml.__version__ == PROJECT["version"]


def test_a_folder_that_is_not_installed_has_a_version_too(tmp_path):
    (tmp_path / "dml").mkdir()
    (tmp_path / "dml" / "__init__.py").write_text(Path(dml.__file__).read_text())
    isolated = [sys.executable, "-S", "-c", "import dml; print(dml.__version__)"]  # -S: nothing installed
    done = subprocess.run(isolated, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout == "0+unknown\n", done.stderr


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_hooks_before_a_commit_are_commands_of_make_check(hook):
    makefile = (ROOT / "Makefile").read_text()
    tool = hook["entry"].removesuffix(" --force-exclude").removeprefix(".venv/bin/")
    assert f"$(BIN)/{tool}" in makefile
    assert hook["language"] == "system"


def test_every_version_that_is_part_of_an_identity_is_explained():
    constants = {
        (name, str(file.relative_to(ROOT)))
        for file in sorted((ROOT / "dml").rglob("*.py"))
        for name in re.findall(r"^(_?[A-Z_]*(?:VERSION|FORMAT)) = \d+", file.read_text(), re.MULTILINE)
    }
    rows = [line for line in CONTRIBUTING.splitlines() if line.startswith("| `")]
    assert constants == {
        (name, file)
        for row in rows
        for name in re.findall(r"`(_?[A-Z_]+)`", row)
        for file in re.findall(r"`(dml/[a-z_/]+\.py)`", row)
    }
