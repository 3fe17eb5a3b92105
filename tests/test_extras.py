"""A verb whose extra is not installed says which to install, in one line; `dml.losses` needs none."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dml.extras import EXTRA_OF

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "faiss-cpu": "faiss",
    "faiss-gpu-cuvs": "faiss",
    "opencv-python-headless": "cv2",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "psycopg2-binary": "psycopg2",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
BOUNDED_FOR_PREFECT = {"fastapi", "sqlalchemy"}
IN_TWO_EXTRAS = {"ray"}
"""`serve` of Ray and the rest of it."""
EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()
}


def held_by(extra: str) -> set[str]:
    """The extra, and all that it holds."""
    inner = (
        each
        for requirement in EXTRAS[extra]
        for each in requirement.extras
        if requirement.name == PROJECT["name"]
    )
    return {extra}.union(*(held_by(each) for each in inner))


def third_party_imports() -> set[str]:
    names = set()
    for file in [*ROOT.glob("dml/**/*.py"), *ROOT.glob("flows/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module))
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"dml", "flows"}


def test_every_package_that_we_import_is_the_bases_or_an_extras():
    assert third_party_imports() - {"torch", "numpy"} <= EXTRA_OF.keys()


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_package_is_looked_for_in_the_extra_that_brings_it(extra):
    for requirement in EXTRAS[extra]:
        if requirement.name not in {PROJECT["name"], "typer", "rich", *BOUNDED_FOR_PREFECT, *IN_TWO_EXTRAS}:
            package = IMPORTED_AS.get(requirement.name, requirement.name)
            assert EXTRA_OF[package] in held_by(extra), requirement.name


def test_every_package_of_an_extra_is_imported():
    """But for what only bounds a version for Prefect, and drivers that SQLAlchemy loads by their names."""
    wanted = {requirement.name for requirements in EXTRAS.values() for requirement in requirements}
    packages = {IMPORTED_AS.get(name, name) for name in wanted - BOUNDED_FOR_PREFECT - {PROJECT["name"]}}
    loaded_by_name = {"asyncpg", "psycopg2"}
    external_embedders = {"h5py", "onnx", "onnxruntime", "transformers"}
    assert packages - third_party_imports() <= loaded_by_name | external_embedders


def test_all_holds_every_extra():
    assert held_by("all") == EXTRAS.keys()


def run_without(packages: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb on a machine that lacks packages."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages})); sys.argv = ['dml', *{list(arguments)}]\n"
        "import runpy; runpy.run_module('dml.cli', run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("typer", ["search", "query.png"], "all"),
        ("prefect", ["train", "shop"], "flows"),
        ("faiss", ["indexes"], "index"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_verb_without_its_packages_says_what_to_install(missing, arguments, extra):
    done = run_without([missing], *arguments, "--json")
    message = (
        f"This needs the package {missing}; it is not installed. Do: pip install 'dml-platform[{extra}]'."
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"error: {message}")
    assert json.loads(done.stdout) == {"error": message}
    assert "Traceback" not in done.stderr


def test_losses_metrics_and_samplers_need_no_extra():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(EXTRA_OF)}))\n"
        "import dml.losses, dml.metrics.retrieval, dml.metrics.verification, dml.metrics.clustering\n"
        "import dml.metrics.fewshot, dml.metrics.intervals, dml.data.sampling, dml.training.conformance"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
