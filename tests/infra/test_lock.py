"""requirements.lock pins what pyproject.toml asks for, and says nothing about where it comes from."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_requirement_is_pinned_to_a_version_that_satisfies_it():
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", LOCK, re.MULTILINE):
        pinned.setdefault(canonicalize_name(name), set()).add(version)
    groups = [
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *(group for name, group in PROJECT["dependency-groups"].items() if name != "peers"),
    ]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name == PROJECT["project"]["name"]:
            continue  # an extra that holds another
        versions = pinned.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is not pinned: make lock"
        assert all(version in requirement.specifier for version in versions), f"{requirement}: make lock"


def test_no_registry_is_named():
    assert "://" not in LOCK
    assert "index-url" not in LOCK
