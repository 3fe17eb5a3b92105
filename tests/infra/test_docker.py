"""The Dockerfiles' own commands, run in a clean folder: what can be tried without a container engine."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
KEYWORDS = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD", "HEALTHCHECK"}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (keyword, rest) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_instructions_are_known_and_the_image_does_not_run_as_root(dockerfile: Path):
    actual = instructions(dockerfile)
    assert {keyword for keyword, _ in actual} <= KEYWORDS
    users = [rest for keyword, rest in actual if keyword == "USER"]
    assert users
    assert users[-1] not in ("root", "0")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_let_through_by_dockerignore(dockerfile: Path):
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {
        source
        for keyword, rest in instructions(dockerfile)
        if keyword == "COPY"
        for source in rest.split()[:-1]
    }
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


def test_both_images_have_the_same_uv():
    versions = {version for file in DOCKERFILES for version in re.findall(r"uv==([\d.]+)", file.read_text())}
    assert len(versions) == 1


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_model_that_a_store_may_hold_can_be_loaded(dockerfile: Path):
    extras = set(re.findall(r"--extra (\S+)", dockerfile.read_text()))
    assert {"faces", "onnx", "huggingface"} <= extras


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv on the PATH")
def test_the_commands_that_need_no_root_install_a_working_dml(tmp_path: Path):
    """Copies and uv's commands in order, in the image's working folder moved to an empty one.

    Only uv's cache is used, which an image has no room for.
    """
    service = ROOT / "docker" / "Dockerfile.service"
    for keyword, rest in instructions(service):
        if keyword == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(ROOT / source, tmp_path / target)
        elif keyword == "RUN" and rest.startswith("/opt/uv/bin/uv "):
            _run(["uv", *shlex.split(rest.replace("--no-cache ", ""))[1:]], tmp_path)
    helped = subprocess.run(
        [tmp_path / ".venv/bin/dml", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert helped.returncode == 0, helped.stderr
    assert "search" in helped.stdout
    imports = "import dml.up, flows.train, psycopg2, boto3, mlflow"
    subprocess.run([tmp_path / ".venv/bin/python", "-c", imports], cwd=tmp_path, check=True)
    assert not (tmp_path / ".venv/bin/pytest").exists(), "development tools stay out of the image"
    shutil.rmtree(tmp_path / ".venv")  # gigabytes that pytest would keep


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name)


def _run(command: list[str], cwd: Path) -> None:
    command = [sys.executable if word == "python3" else word for word in command]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
