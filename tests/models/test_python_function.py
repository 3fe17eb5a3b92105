"""A function of the user's embeds as a package, and a package notices that its file has changed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.models.external import Options, import_embedder, preview, read_embedder
from dml.models.package import load_package
from dml.models.runtimes.python import source_file
from tests.models.photos import photo, png_of

CODE = """
import numpy as np

def colours(images):
    return np.stack([image.mean((0, 1)) for image in images])

def blank(images):
    return np.zeros((len(images), 4))

def one(images):
    return np.ones(4)

def fails(images):
    return np.stack([np.zeros(2), np.zeros(3)])

def leaves(images):
    raise SystemExit(0)

def imaginary(images):
    return np.ones((len(images), 4)) * 1j

def words(images):
    return [["1.5"] for _ in images]

def empty(images):
    return np.ones((len(images), 0))

def calls(images, numbers=[]):
    numbers += images
    return np.stack([[len(numbers), number, 1] for number in range(len(images))])

def widens(images):
    return np.hstack([colours(images)] * (2 if len(images) > 3 else 1))

def equal(images):
    return np.ones((len(images), 4))

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's on the path; its name is its test's own."""
    name = f"mine_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_whole_rgb_images_of_any_size_go_in_and_unit_vectors_come_out(tmp_path, module):
    package = import_embedder(str(tmp_path / "s"), f"python:{module}:colours", Options())
    images = [photo(40, 30), photo(8, 90, seed=1)]
    expected = np.stack([np.asarray(image).mean((0, 1)) for image in images])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embeddings = load_package(package.uri).embed([png_of(image) for image in images])
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_a_function_that_gives_other_embeddings_later_is_refused(tmp_path, module):
    package = load_package(import_embedder(str(tmp_path / "s"), f"python:{module}:widens", Options()).uri)
    images = [png_of(photo(8, 8, seed=seed)) for seed in range(4)]
    assert package.embed(images[:3]).shape == (3, 3)
    with pytest.raises(InvalidData, match=r"one embedding of 3 numbers for each image; it gives \(4, 6\)"):
        package.embed(images)


def test_a_file_that_changed_is_noticed_before_it_is_run(tmp_path, module):
    package = import_embedder(str(tmp_path / "s"), f"python:{module}:colours", Options())
    sys.modules.pop(module)
    (tmp_path / f"{module}.py").write_text("raise SystemExit('was run')")
    with pytest.raises(IncompatibleArtifact, match=rf"{module}:colours must be the one that was imported"):
        load_package(package.uri)


def test_a_module_that_is_not_there_any_more_is_named(tmp_path, module):
    package = import_embedder(str(tmp_path / "s"), f"python:{module}:colours", Options())
    sys.modules.pop(module)
    (tmp_path / f"{module}.py").unlink()
    with pytest.raises(MissingArtifact, match="PYTHONPATH"):
        load_package(package.uri)


def test_an_installed_module_is_named_with_its_distribution(module):
    assert source_file("PIL.Image:open").distribution.startswith("pillow==")
    assert source_file(f"{module}:colours").distribution == ""


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("blank", InvalidData, "must give numbers"),
        ("one", InvalidData, r"\(N, D\) real numbers for N images; it gives \(4,\)"),
        ("nothing", MissingArtifact, "must have a function nothing"),
        ("number", MissingArtifact, "must have a function number"),
        ("fails", InvalidData, r"raised ValueError: all input arrays .* \(.*mine_.*\.py, line 14\)"),
        ("imaginary", InvalidData, r"real numbers for N images; it gives \(1, 4\) of complex128"),
        ("words", InvalidData, r"real numbers for N images; it gives \(1, 1\) of <U3"),
        ("empty", InvalidData, r"real numbers for N images; it gives \(1, 0\)"),
        ("calls", InvalidData, "must depend on its image alone"),
        ("equal", InvalidData, "must tell images apart"),
        ("leaves", InvalidData, r"raised SystemExit: 0 \(.*mine_.*\.py, line 17\). Mend it"),
    ],
)
def test_a_function_that_gives_no_embeddings_is_refused(tmp_path, module, function, error, message):
    with pytest.raises(error, match=message):
        import_embedder(str(tmp_path / "s"), f"python:{module}:{function}", Options())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import face_models_not_here", r"ModuleNotFoundError: No module .* \(.*mine_.*\.py, line 1\)"),
        ("def broken(:", r"raised SyntaxError: .*line 1\)"),
        ("import sys\nsys.exit()", r"raised SystemExit \(.*mine_.*\.py, line 2\)"),
    ],
    ids=["needs another", "no Python", "leaves"],
)
def test_a_module_that_fails_while_it_is_imported_is_refused_with_its_line(tmp_path, module, code, message):
    (tmp_path / f"{module}.py").write_text(code)
    with pytest.raises(InvalidData, match=message):
        read_embedder(f"python:{module}:colours", Options())


def test_a_package_that_fails_while_it_is_imported_is_not_called_missing(tmp_path, module):
    (tmp_path / f"{module}_of").mkdir()
    (tmp_path / f"{module}_of" / "__init__.py").write_text("import face_models_not_here")
    with pytest.raises(InvalidData, match="No module named 'face_models_not_here'"):
        read_embedder(f"python:{module}_of.part:colours", Options())


def test_a_network_that_gives_no_numbers_is_not_tried(tmp_path, module):
    network = read_embedder(f"python:{module}:blank", Options())
    with pytest.raises(InvalidData, match="must give numbers"), preview(network):
        pass


@pytest.mark.parametrize("address", ["python:json", "python:json:", "python:a-b:c", "python:../x:y"])
def test_an_address_that_names_no_function_is_refused(address):
    with pytest.raises(InvalidSetting, match=r"must be (named|one of)"):
        read_embedder(address, Options())


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(MissingArtifact, match="needs the module not_there"):
        read_embedder("python:not_there:embed", Options())


@pytest.mark.parametrize("function", ["os:system", "os.path:join", "json:loads"])
def test_a_function_of_python_itself_embeds_nothing(function):
    with pytest.raises(InvalidSetting, match=r"a module of Python itself\. Write one"):
        read_embedder(f"python:{function}", Options())


@pytest.mark.slow
def test_the_primers_own_face_network_is_one(tmp_path, monkeypatch):
    pytest.importorskip("face_recognition")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    package = import_embedder(str(tmp_path), "python:dlib_faces:embed", Options(license="CC0"))
    assert package.dim == 128
    vectors = load_package(package.uri).embed([png_of(photo(150, 150, seed=seed)) for seed in range(3)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
