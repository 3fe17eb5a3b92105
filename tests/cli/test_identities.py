"""`dml calibrate`, `dml identify`, `dml compare`, and searches grouped by identity, on the command line."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate
from dml.retrieval.index import publish_index
from flows.forget import forget_flow
from tests.embedding.vectors import write_parquet
from tests.retrieval.test_calibration import enrol, people
from tests.retrieval.test_identifier import between, photo


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store, ref = enrol(tmp_path_factory.mktemp("faces"), likeness=0.5, noise=0.15)
    calibrate(store, ref, fpir=0.3, by=["region"])
    return store


@pytest.fixture
def probes(tmp_path):
    """Files of one vector each."""
    for name, vector in {"three": photo(3), "again": photo(3, seed=8), "either": between(5, 190)}.items():
        np.save(tmp_path / f"{name}.npy", vector)
    return lambda name: str(tmp_path / f"{name}.npy")


def test_an_index_is_calibrated_and_listed_as_such(store, dml):
    done = dml("calibrate", "faces", "--fpir", "0.3", "--by", "region", "--store", store, "--json")
    scopes = done.json["scopes"]
    assert [scope["scope"] for scope in scopes] == ["", *(f"region = 'region {n}'" for n in range(6))]
    assert scopes[0]["checked"]["low"] <= 0.15 <= scopes[0]["checked"]["high"]
    listed = dml("indexes", "--store", store, "--json").json["indexes"]
    assert [index["fpir"] for index in listed] == [0.3]
    assert "30 %" in dml("indexes", "--store", store).out


def test_of_a_column_of_many_values_those_with_the_most_and_the_fewest_people_are_printed(dml, tmp_path):
    vectors, labels, _ = people(regions=2)
    store = str(tmp_path / "store")
    columns = {
        "id": [f"image {row}" for row in range(len(vectors))],
        "label": [f"person {label}" for label in labels],
        "device": [f"device {int(label**0.7)}" for label in labels],
    }
    table = import_vectors(store, "faces", write_parquet(tmp_path, vectors, **columns)).embeddings
    publish_index(store, build_index(store, "faces", table, IndexConfig()))
    asked = ["calibrate", "faces", "--fpir", "0.3", "--by", "device", "--store", store]
    people_in = {each["scope"]: each["identities"] for each in dml(*asked, "--json").json["scopes"]}
    assert len(people_in) == 30
    shown = dml(*asked).out
    sizes = [people_in[scope] for scope in re.findall(r"│ (device = 'device \d+') ", shown)]
    assert len(sizes) == 20
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == min(people_in.values())
    assert "the 10 values with the most identities and the 10 with the fewest; of all 30 scopes" in shown
    assert "--json prints all" in shown


def test_a_promise_that_cannot_be_kept_is_not_made(dml, tmp_path):
    store, _ = enrol(tmp_path / "few", regions=2, per_region=16)
    done = dml("calibrate", "faces", "--fpir", "0.0001", "--store", store)
    assert done.status == 2
    assert "error: the whole gallery: an FPIR of 0.0001 among 3" in done.err


def test_somebody_is_identified_in_the_first_scope_that_holds_them(store, dml, probes):
    scopes = ["--scope", "region = 'region 4'", "--scope", ""]
    done = dml("identify", probes("three"), *scopes, "--store", store, "--json")
    assert (done.json["status"], done.json["identity"], done.json["scope"]) == ("identified", "person 3", "")
    shown = dml("identify", probes("three"), *scopes, "--store", store).out
    assert shown.startswith("person 3, similarity 0.9")


def test_a_hint_that_was_asked_for_resolves(store, dml, probes):
    asked = ["identify", probes("either"), "--threshold", "0.7", "--never-ask", "region", "--store", store]
    assert "needs a hint: --hint device=...; 2 identities" in dml(*asked).out
    done = dml(*asked, "--hint", "device = device 30", "--json")
    assert (done.json["status"], done.json["identity"]) == ("identified", "person 190")


def test_nobody_is_unknown_and_that_is_no_failure(store, dml, probes):
    done = dml("identify", probes("three"), "--threshold", "1", "--store", store)
    assert (done.status, done.out.splitlines()[0]) == (0, "unknown: nobody enrolled is so similar")


def test_two_vectors_are_compared_and_one_with_an_identity(store, dml, probes):
    own = ["--store", store, "--fmr", "0.01"]
    assert dml("compare", probes("three"), probes("again"), *own).out.startswith("same: similarity 0.9")
    done = dml("compare", probes("three"), "--identity", "person 190", *own, "--json").json
    assert (done["same"], done["images"], done["fmr"]) == (False, 3, 0.01)


def test_answers_are_grouped_by_identity(store, dml):
    grouped = ["search", "--id", "image 9", "-k", "2", "--store", store, "--group-by-identity"]
    first, second = dml(*grouped, "all", "--json").json["identities"]
    assert (first["identity"], len(first["images"]), len(second["images"])) == ("person 3", 2, 3)
    assert "person 3" in dml(*grouped, "best").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["identify", "{three}", "--hint", "device"], "--hint must be name=value; got 'device'"),
        (["identify", "nowhere.jpg"], "must be a readable image file; nowhere.jpg"),
        (["identify", "{three}", "--fpir", "2"], "fpir must be a number in (0, 0.5]"),
        (["compare", "{three}"], "compared with another or with an --identity; got none"),
        (["compare", "{three}", "{again}", "--identity", "x"], "--identity x. Name one"),
        (
            ["search", "--id", "image 9", "--group-by-identity", "worst"],
            "mean, all; got 'worst'",
        ),
        (["search", "--id", "", "--group-by-identity", "best"], "'' is not. Its"),
        (["calibrate", "nobody"], "nobody"),
    ],
    ids=lambda case: case[0] if isinstance(case, list) else "",
)
def test_a_mistake_is_said_in_one_line(store, dml, probes, words, message):
    spelt = [probes(word[1:-1]) if word.startswith("{") else word for word in words]
    done = dml(*spelt, "--store", store)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_new_version_of_a_calibrated_index_is_calibrated_alike(dml, tmp_path):
    store, former = enrol(tmp_path, likeness=0.5, noise=0.15)
    calibrate(store, former, fpir=0.3, scopes=["device = 'device 3'"], by=["region"])
    vectors, labels, regions = people(likeness=0.5, noise=0.15)
    columns = {
        "id": [f"image {row}" for row in range(len(vectors))],
        "label": [f"person {n}" for n in labels],
    }
    columns |= {"region": [f"region {n}" for n in regions], "device": ["another"] * len(vectors)}
    import_vectors(store, "faces", write_parquet(tmp_path, vectors, **columns))
    assert dml("index", "faces", "--store", store).status == 0
    new, old = sorted(
        dml("indexes", "--store", store, "--json").json["indexes"], key=lambda each: not each["current"]
    )
    assert (new["fpir"], old["fpir"]) == (0.3, 0.3)
    assert new["fingerprint"] != old["fingerprint"] == former.fingerprint
    np.save(tmp_path / "probe.npy", photo(3))
    scopes = ["--scope", "device = 'device 3'", "--scope", "region = 'region 0'"]
    done = dml("identify", str(tmp_path / "probe.npy"), *scopes, "--store", store, "--json")
    assert (done.json["identity"], done.json["scope"]) == ("person 3", "region = 'region 0'")


def test_a_new_version_that_cannot_be_calibrated_is_used_after_the_command_that_is_named(dml, tmp_path):
    store, former = enrol(tmp_path, regions=2, per_region=30)
    calibrate(store, former, fpir=0.3)
    vectors, *_ = people(seed=1, regions=2, per_region=30)
    import_vectors(store, "faces", write_parquet(tmp_path, vectors, id=list(map(str, range(len(vectors))))))
    done = dml("index", "faces", "--store", store)
    said = " ".join(done.err.split())
    assert done.status == 2
    assert f"{former} stays in use. To go on without thresholds: dml rm thresholds faces, then" in said
    assert dml("rm", "thresholds", "faces", "--store", store, "--json").json["removed"] == [str(former)]
    assert dml("rm", "thresholds", "faces", "--store", store).status == 2
    assert dml("index", "faces", "--store", store).status == 0
    (used,) = [e for e in dml("indexes", "--store", store, "--json").json["indexes"] if e["current"]]
    assert (used["fingerprint"] == former.fingerprint, used["fpir"]) == (False, None)


def test_forgetting_so_many_that_no_threshold_is_left_says_which_version_is_in_use(dml, tmp_path, caplog):
    store, former = enrol(tmp_path, regions=2, per_region=30)
    calibrate(store, former, fpir=0.3)
    _, labels, _ = people(regions=2, per_region=30)
    most = [f"image {row}" for row, label in enumerate(labels) if label >= 6]
    caplog.set_level("INFO", "dml.flows")
    forget_flow.fn("faces", most, store)
    (used,) = dml("indexes", "--store", store, "--json").json["indexes"]
    version = f"faces@{used['fingerprint'][:12]}"
    assert "stays in use" not in caplog.text
    assert f"index {version} has no thresholds: {former} identifies with calibrated thresholds" in caplog.text
    assert (
        f"{version} replaces it, and searches go on. To identify again: dml calibrate faces." in caplog.text
    )


PAGE = (Path(__file__).parents[2] / "docs" / "identification.md").read_text()
REGIONS = ("north", "east", "south", "west")


def page_of_people(folder):
    """What docs/identification.md has before its first command: an index `people`, and photos of three."""
    random = np.random.default_rng(7)
    region = np.arange(240) % 4
    centres = 0.6 * random.normal(size=(4, 32))
    identity = centres[region] + random.normal(size=(240, 32))
    identity[32] = 0.8 * identity[28] + 0.2 * identity[32]  # two who look alike

    def photos(people):
        vectors = people + 0.25 * random.normal(size=people.shape)
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    rows = np.repeat(np.arange(240), 3)
    columns = {
        "id": [f"photo-{row:03d}" for row in range(720)],
        "label": [f"person-{number:03d}" for number in rows],
        "region": [REGIONS[number % 4] for number in rows],
        "phone_suffix": [str(1000 + number) for number in rows],
    }
    store = str(folder / "store")
    report = import_vectors(store, "people", write_parquet(folder, photos(identity[rows]), **columns))
    publish_index(store, build_index(store, "people", report.embeddings, IndexConfig()))
    np.save(folder / "guest.npy", photos(identity[4]))
    np.save(folder / "not_enrolled.npy", photos(centres[0] + random.normal(size=32)))
    np.save(folder / "twin.npy", photos((identity[28] + identity[32]) / 2))
    return store


def commands_of_the_page():
    """Each command of its transcript, and what the page says that it prints."""
    (transcript,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def words_and_numbers(printed):
    """The text without numbers, versions and spaces, and the numbers."""
    text = re.sub(r"@[0-9a-f]{12}", "", printed)
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]
    return re.sub(r"\s+", " ", re.sub(r"-?\d+\.?\d*|[─━┄]", "", text)).strip(), numbers


def test_the_transcript_of_the_page_is_what_its_commands_print(dml, tmp_path, monkeypatch):
    store = page_of_people(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command, printed in commands_of_the_page():
        done = dml(*shlex.split(command)[1:], "--store", store)
        assert done.status == 0, done.err
        actual, numbers = words_and_numbers(done.out)
        expected, of_page = words_and_numbers(printed)
        assert actual == expected, command
        assert numbers == pytest.approx(of_page, rel=0.05, abs=0.01), command
