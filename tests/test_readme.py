"""The README is true: its blocks run, in order, in an empty folder; and the verbs keep their word."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

from dml.cli import main
from tests.answers import require_declared_type
from tests.ports import free_port

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
CONSOLE = re.findall(r"^```console\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
ENV = {
    **{
        key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "DML_"))
    },
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "2",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # two minutes of work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every block of the README has run."""
    folder = tmp_path_factory.mktemp("newcomer")
    for language, code in BLOCKS:
        command = (
            ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        )
        done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return folder


def console(beginning: str) -> str:
    """The console block that begins so."""
    (block,) = (block for block in CONSOLE if block.startswith(beginning))
    return block


def type_in(folder: Path, block: str) -> str:
    """What a terminal prints in which a block is typed; every line of it must go well."""
    env = ENV | {"PREFECT_HOME": str(folder / "client")}
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def dml(folder, monkeypatch, capsys):
    """One verb with --json, in that folder: its exit status is as expected, and it prints one object."""

    def call(*arguments: str, status: int = 0) -> dict:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["dml", *arguments, "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        printed = capsys.readouterr()
        assert (done.value.code or 0) == status, printed.err
        answer = json.loads(printed.out)
        require_declared_type(arguments, answer)
        assert status == 0 or printed.err.endswith(f"error: {answer['error']}\n")
        return answer

    return call


def test_the_readme_has_blocks_of_both_kinds():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


def test_every_console_block_is_run_by_a_test():
    known = (
        "make demo",
        "dml index photos/",
        'python -c "\nfrom PIL',
        "dml up",
        'eval "$(dml env)"',
        "dml bench",
    )
    assert len([console(beginning) for beginning in known]) == len(CONSOLE)


def test_what_is_made_is_in_the_makefile():
    for line in console("make demo").splitlines():
        subprocess.run(
            ["make", "--dry-run", line.split()[1]], cwd=README.parent, check=True, capture_output=True
        )


def test_photos_and_a_pretrained_network_become_a_service_that_knows_what_is_unknown(tmp_path, shared_data):
    """With weights in a file, since the example's are fetched."""
    write_cars(shared_data, tmp_path / "photos", classes=100, per_class=2)
    shutil.copy(next(tmp_path.glob("photos/*/*.jpg")), tmp_path / "query.jpg")
    weights = shared_data / "weights" / "squeezenet1_1_imagenet_features.safetensors"
    *commands, serve = console("dml index photos/").splitlines(keepends=True)
    type_in(tmp_path, "".join(commands).replace("timm:resnet50", f"safetensors:{weights}"))
    words = f"exec {serve.partition('#')[0]} --port 0 --json"
    with subprocess.Popen(["bash", "-c", words], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE) as service:
        try:
            assert service.stdout is not None
            address = json.loads(service.stdout.readline())["address"]
            block = console('python -c "\nfrom PIL').replace("http://127.0.0.1:8000", address)
            blank, photo, *found = type_in(tmp_path, block).splitlines()
        finally:
            service.send_signal(signal.SIGINT)
    assert service.returncode == 0
    assert blank.startswith("unknown "), blank
    assert re.fullmatch(r"known \d+ (1\.0|0\.99999\d+)", photo), photo
    assert any(re.search(r"\d+/\d+\.jpg\W+\d+\W+1\b", line) for line in found), "it finds itself"


def write_cars(shared_data: Path, folder: Path, *, classes: int, per_class: int) -> None:
    """Photos of CARS196's first classes, a folder for each."""
    with zipfile.ZipFile(shared_data / "cars196_trainhalf_96px.zip") as archive:
        (labels,) = (name for name in archive.namelist() if name.endswith("labels.csv"))
        rows = csv.DictReader(archive.read(labels).decode().splitlines())
        of_class: defaultdict[str, list[str]] = defaultdict(list)
        for row in rows:
            of_class[row["class_id_1based"]].append(row["path"])
        for label in sorted(of_class, key=int)[:classes]:
            (folder / label).mkdir(parents=True)
            for path in of_class[label][:per_class]:
                photo = archive.read(str(PurePosixPath(labels).parent / path))
                (folder / label / PurePosixPath(path).name).write_bytes(photo)


@pytest.mark.timeout(2400)
def test_it_runs_by_itself_with_what_is_typed_in_two_terminals(folder):
    (command,) = console("dml up").splitlines()
    ports = [free_port() for _ in range(2)]  # the usual ones may be taken on this machine
    first = subprocess.Popen(
        [
            "bash",
            "-c",
            f"exec {command.partition('#')[0]} --prefect-port {ports[0]} --mlflow-port {ports[1]}",
        ],
        cwd=folder,
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert any(line.startswith("Ctrl-C") for line in first.stdout)
        printed = type_in(folder, console('eval "$(dml env)"'))
        assert "Flow run finished successfully" in printed
        assert f"Prefect at http://127.0.0.1:{ports[0]}/api follows." in printed
        assert re.search(r"^shop@\w+: 320 rows", printed, re.MULTILINE)
        type_in(folder, "dml schedule shop --off")
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait(180) == 0


@pytest.mark.timeout(2400)
def test_comparing_runs_on_what_the_readme_has_made(folder):
    """With one seed instead of two, since every cell is a training."""
    block = console("dml bench")
    assert "--seeds 2" in block
    type_in(folder, block.replace("--seeds 2", "--seeds 1"))


def test_ingesting_the_same_again_gives_the_same_version(folder, dml):
    datasets = folder / "dml-store" / "datasets" / "shop"
    files = sorted(datasets.rglob("*"))
    again = dml("ingest", "glyphs:classes=40,per_class=8", "--name", "shop")
    dataset = again["dataset"]
    assert (again["outcome"], dataset["rows"], dataset["classes"], dataset["quarantined"]) == (
        "current",
        320,
        40,
        0,
    )
    assert dataset["splits"]["train"]["classes"] == dataset["splits"]["test"]["classes"] == 20
    assert sorted(datasets.rglob("*")) == files, "neither a version nor a fragment more"
    assert dml("datasets")["datasets"][0]["fingerprint"] == dataset["fingerprint"]


def test_training_the_same_again_computes_nothing_and_adds_no_version(folder, dml):
    versions = [model["version"] for model in dml("models")["models"]]
    again = dml("train", "shop", "--preset", "smoke")
    assert again["trained"]["images_per_second"] > 0
    assert [model["version"] for model in dml("models")["models"]] == versions
    trained, before = again["evaluation"]["trained"], again["evaluation"]["baselines"]["before training"]
    assert trained["metrics"]["recall_at_1"]["value"] > before["metrics"]["recall_at_1"]["value"]


def test_the_champion_stays_where_a_newcomer_is_not_better(folder, dml):
    settings = ("--set", "training.num_steps=1", "--set", "optimizer.learning_rate=1e-9")
    worse = dml("train", "shop", "--preset", "smoke", *settings)
    assert worse["model"]["alias"] == "challenger"
    assert "against the champion's" in worse["model"]["reason"]
    champions = [model for model in dml("models")["models"] if model["alias"] == "champion"]
    assert len(champions) == 1
    assert champions[0]["version"] != worse["model"]["version"]


def test_evaluating_shows_the_baselines(folder, dml):
    report = dml("evaluate", "shop", "shop")
    assert set(report["baselines"]) == {"raw pixels", "before training"}
    assert {"recall_at_1", "recall_at_8", "map_at_r", "nmi"} <= report["trained"]["metrics"].keys()


def test_a_report_is_a_page_to_open_and_circles_are_one_too(folder, dml):
    report = dml("report", "shop", "shop", "--set", "map_points=60")
    assert report["page"].startswith(str(folder / "dml-store" / "reports"))
    assert "shop/" in Path(report["page"]).read_text()
    assert {"answers.png", "roc.png"} <= report["pictures"].keys()
    small = ("--set", "training.num_steps=1", "--set", "encoder.backbone.width=8")
    circles = dml("circles", "shop", "--losses", "softmax", "triplet_margin", *small)
    assert circles["pictures"]["circles.png"].startswith("softmax, triplet_margin: 320 images of shop@")


def test_searching_finds_the_query_itself_first_and_obeys_the_filter(folder, dml):
    options = ("--index", "shop", "-k", "7", "--where", "split = 'train'", "--picture", "found.png")
    printed = dml("search", "query.png", *options)
    assert {"answers", "index", "model"} <= printed.keys()
    assert printed["model"].startswith("shop/")
    assert len(printed["answers"]) == 7
    assert {"script", "style"} <= printed["answers"][0]["attributes"].keys()
    similarities = [answer["similarity"] for answer in printed["answers"]]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(1, abs=1e-5)
    assert Path(printed["picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "missing.png", "--index", "shop"], "missing.png"),
        (["search", "query.png", "--index", "none"], "'none'"),
        (["search", "query.png", "--index", "shop", "--where", "colour = 'red'"], "colour"),
        (["search", "query.png", "--index", "shop", "--where", "script=Latin"], "Write: script = 'Latin'"),
        (["search", "dml-store/mlflow.db", "--index", "shop"], "image"),
        (["ingest", "no-such-folder"], "no-such-folder"),
        (["ingest", "glyphs:", "--split", "nonsense"], "nonsense"),
        (["train", "nowhere"], "nowhere"),
        (["train", "shop", "--preset", "none"], "smoke"),
        (["train", "shop", "--set", "loss.margn=1"], "margn"),
        (["evaluate", "nobody", "shop"], "nobody"),
        (["report", "nobody", "shop"], "nobody"),
        (["report", "shop", "shop", "--set", "split=nonsense"], "nonsense"),
        (["circles", "shop", "--losses", "nonsense"], "nonsense"),
        (["index", "shop", "--factory", "Nonsense"], "Nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_a_users_mistake_is_one_clear_message_and_status_2(folder, dml, arguments, says):
    assert says in dml(*arguments, status=2)["error"]


def test_searching_imports_nothing_it_does_not_need(folder):
    code = (
        "import sys; sys.argv = ['dml', 'search', 'query.png', '--index', 'shop', '--json']\n"
        "from dml.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'ray', 'mlflow', 'prefect', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENV, check=True, capture_output=True)
