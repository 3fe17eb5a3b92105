"""For several rooms' tests: the real data, a store on an S3 server, and one with an embedded dataset."""

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dml.refs import DatasetRef, EmbeddingsRef, PackageRef

# pytorch-metric-learning imports it, and it would replace Faiss's own `search` for the whole test process.
sys.modules["faiss.contrib.torch_utils"] = ModuleType("faiss.contrib.torch_utils")

# A shell's `&` starts processes that ignore Ctrl-C, and so do theirs; some tests send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A flow that a test calls where no Prefect is configured fails. Otherwise Prefect would start a server, and
# write to a stream that pytest has closed when the process ends. Read when Prefect is imported.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"

if importlib.util.find_spec("hypothesis") is not None:  # not on a machine that has little but torch
    from hypothesis import settings

    # The same examples in each run: a run fails for what was changed, never for what was drawn.
    settings.register_profile("same", derandomize=True, database=None, deadline=None)
    settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent
GPU_TESTS = ROOT / "tests" / "gpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    if importlib.util.find_spec("pytest_timeout") is None:  # as on a machine that has little but torch
        parser.addini("timeout", "seconds a test may take, where pytest-timeout is installed")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "gpu":
        config.option.reportchars += "s"  # why they are skipped, where they are


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside real servers and on a GPU a warning is shown; elsewhere it is an error (pyproject.toml)."""
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` imports no other test: what they import a machine with a GPU need not have."""
    elsewhere = collection_path not in GPU_TESTS.parents and not collection_path.is_relative_to(GPU_TESTS)
    return True if config.option.markexpr == "gpu" and elsewhere else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; set DML_TEST_DATA where it is not next to the repository."""
    folder = Path(os.environ.get("DML_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data of DML_TEST_DATA; there is no folder {folder}")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves copies in the user's cache, or finds one there."""
    monkeypatch.setenv("DML_CACHE", str(tmp_path_factory.getbasetemp() / "dml-cache"))


@pytest.fixture(autouse=True)
def only_marked_tests_start_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("ray"):
        monkeypatch.setenv("RAY_TMPDIR", "/dev/null/this test starts Ray and needs the marker ray")


@pytest.fixture(autouse=True, scope="module")
def own_environment() -> Iterator[None]:
    """No file's tests leave variables to the next's, such as the MLflow that a session was told of.

    But for Ray's: what a process has read of them once holds until it ends.
    """
    before = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield
    for name in [name for name in os.environ if not name.startswith("RAY_") and name not in before]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub can be reached, and torch's cache is empty."""
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server process's address, for as long as the tests run; conditional writes are atomic."""
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application, writing = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def atomic(environ: Any, start_response: Any) -> Any:
        if environ.keys() & {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}:  # as S3 does; moto checks, then writes
            with writing:
                return application(environ, start_response)
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, atomic, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def s3_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URI of an empty store in a bucket of its own."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"dml-{tmp_path.name.replace('_', '-').lower()}"[:60].strip("-")
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/store"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with one dataset, one package and the embeddings of the dataset by the package."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def dataset(store: str, tmp_path_factory: pytest.TempPathFactory) -> "DatasetRef":
    from tests.embedding.parts import make_dataset

    return make_dataset(tmp_path_factory.mktemp("images"), store)


@pytest.fixture(scope="session")
def package(store: str) -> "PackageRef":
    from tests.embedding.parts import make_package

    return make_package(store)


@pytest.fixture(scope="session")
def embeddings(store: str, package: "PackageRef", dataset: "DatasetRef") -> "EmbeddingsRef":
    from dml.embedding.embed import embed

    return embed(store, package, dataset)
