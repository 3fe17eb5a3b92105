"""The wheel in empty environments: losses alone need torch and NumPy, `[all]` goes from images to answers."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".cache" / "uv" / "bin"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        UV is None, reason="needs uv, which `make setup` downloads where it is not on the PATH"
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], ROOT)
    (built,) = folder.glob("*.whl")
    return built


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    inherited = {"PYTHONPATH", "VIRTUAL_ENV", "DML_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(
        command, cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def install(requirement: str, folder: Path) -> Path:
    """The programs of a new environment with a requirement, at the versions of the lock."""
    environment = folder / "environment"
    run([str(UV), "venv", "--python", sys.executable, environment], folder)
    lock = ["--constraint", ROOT / "requirements.lock"]
    run([str(UV), "pip", "install", "--python", environment / "bin" / "python", *lock, requirement], folder)
    return environment / "bin"


def test_the_wheel_holds_both_packages_their_types_and_the_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"dml/py.typed", "flows/py.typed", "dml/losses/__init__.py", "flows/train.py"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dml", "flows", "dml_platform"}


def test_without_extras_a_plain_loop_learns_and_a_verb_says_what_to_install(wheel, tmp_path):
    programs = install(str(wheel), tmp_path)
    example = ROOT / "examples" / "plain_torch_loop.py"
    assert "Recall@1 after training" in run([programs / "python", example, "--steps", "2"], tmp_path).stdout
    verb = subprocess.run([programs / "dml", "train", "shop"], cwd=tmp_path, capture_output=True, text=True)
    (error,) = [line for line in verb.stderr.splitlines() if "at work" not in line]
    assert (verb.returncode, "pip install 'dml-platform[all]'" in error) == (2, True)
    shutil.rmtree(tmp_path / "environment")  # gigabytes that pytest would keep


def test_with_all_extras_a_demo_goes_from_images_to_answers(wheel, tmp_path):
    programs = install(f"dml-platform[all] @ {wheel.as_uri()}", tmp_path)
    small = [
        "--source",
        "glyphs:classes=24,per_class=6",
        "--preset",
        "smoke",
        "--set",
        "training.num_steps=2",
    ]
    done = run([programs / "dml", "demo", *small, "--json"], tmp_path)
    report = json.loads(done.stdout)
    assert report["index"]["rows"] == 24 * 6
    assert not (programs / "pytest").exists(), "development tools are no extra"
    shutil.rmtree(tmp_path / "environment")
