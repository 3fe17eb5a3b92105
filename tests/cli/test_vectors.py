"""Ready vectors on the command line: taken in, indexed, searched, filtered, evaluated, given out again."""

import shutil

import faiss
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml import storage
from tests.embedding.vectors import DIM, ROWS, ids_of, random_vectors, unit, write_ids, write_npy


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """vectors.npy, ids.csv and items.parquet, in a folder of their own."""
    folder = tmp_path_factory.mktemp("vectors")
    write_npy(folder, random_vectors())
    write_ids(folder, ids_of(ROWS))
    items = {
        "id": ids_of(ROWS)[::-1],
        "label": [f"kind {row % 4}" for row in range(ROWS)][::-1],
        "color": [["red", "green", None][row % 3] for row in range(ROWS)][::-1],
        "image_uri": [f"s3://bucket/{row}.jpg" for row in range(ROWS)][::-1],
    }
    parquet.write_table(pa.table(items), folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def filled(files):
    """A store with the imported vectors `clip`, and their index."""
    from dml.config import IndexConfig
    from dml.embedding.external import import_vectors
    from dml.retrieval.build import build_index
    from dml.retrieval.index import publish_index

    store = str(files / "store")
    report = import_vectors(
        store,
        "clip",
        files / "vectors.npy",
        ids=files / "ids.csv",
        attributes=files / "items.parquet",
    )
    publish_index(store, build_index(store, "clip", report.embeddings, IndexConfig()))
    return store


def nearest(query: np.ndarray, rows: np.ndarray, k: int) -> list[str]:
    """By comparing with each of these rows."""
    similarities = unit(random_vectors())[rows] @ query
    return [f"item {row}" for row in rows[np.argsort(-similarities, kind="stable")[:k]]]


def ids_in(done) -> list[str]:
    return [answer["id"] for answer in done.json["answers"]]


def test_vectors_are_imported_listed_indexed_and_evaluated_by_their_name_alone(dml, files, tmp_path):
    store = ["--store", str(tmp_path / "store"), "--json"]
    paths = [str(files / "vectors.npy"), "--ids", str(files / "ids.csv")]
    done = dml("import", *paths, "--attributes", str(files / "items.parquet"), "--name", "clip", *store)
    assert (done.status, done.json["outcome"], done.json["normalized"]) == (0, "made", ROWS), done.err
    (each,) = dml("vectors", *store).json["vectors"]
    assert (each["rows"], each["dim"], each["items"]["classes"], each["current"]) == (ROWS, DIM, 4, True)
    index = dml("index", "clip", *store)
    assert (index.status, index.json["rows"], index.json["name"]) == (0, ROWS, "clip"), index.err
    evaluated = dml("evaluate", "clip", "--set", "slices=color", *store)
    assert 0 < evaluated.json["evaluation"]["metrics"]["recall_at_1"]["value"] < 0.6, evaluated.err
    assert {each["value"] for each in evaluated.json["evaluation"]["slices"]} == {"red", "green", None}
    assert dml("evaluate", "clip", *store[:2]).out.startswith("clip@")
    assert dml("verify", *store).status == 0


def test_importing_the_same_vectors_again_says_that_there_is_nothing_to_do(dml, files, tmp_path):
    words = ("import", str(files / "vectors.npy"), "--name", "clip", "--store", str(tmp_path / "store"))
    first, again = dml(*words), dml(*words)
    assert "nothing to do" not in first.out
    assert "nothing to do: that is the current version already" in again.out


def test_an_item_is_searched_by_its_id_and_is_no_answer_to_itself(dml, filled):
    done = dml("search", "clip", "--id", "item 5", "-k", "7", "--store", filled, "--json")
    others = np.delete(np.arange(ROWS), 5)
    assert ids_in(done) == nearest(unit(random_vectors())[5], others, 7), done.err
    assert done.json["answers"][0]["attributes"]["image_uri"].startswith("s3://bucket/")


def test_a_vector_of_any_length_is_searched_from_a_file(dml, filled, tmp_path):
    query = random_vectors(1, seed=3)[0] * 20
    np.save(tmp_path / "q.npy", query.astype(np.float64))
    done = dml("search", "--index", "clip", "--vector", "q.npy", "-k", "9", "--store", filled, "--json")
    assert ids_in(done) == nearest(unit(query[None])[0], np.arange(ROWS), 9), done.err


@pytest.mark.parametrize(
    ("condition", "remainder"), [("color = 'red'", 0), ("color = 'green'", 1), ("color is null", 2)]
)
def test_conditions_narrow_the_answers(dml, filled, condition, remainder):
    words = ["--id", "item 5", "-k", "7", "--where", condition, "--store", filled, "--json"]
    rows = np.array([row for row in range(ROWS) if row % 3 == remainder and row != 5])
    assert ids_in(dml("search", "clip", *words)) == nearest(unit(random_vectors())[5], rows, 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "clip", "--id", "nobody"], "'nobody' is not"),
        (["search", "clip"], "readable image file"),
        (["search"], "needs a query"),
        (["search", "clip", "--id", "item 5", "--vector", "q.npy"], "one query"),
        (["search", "clip", "--index", "clip", "--id", "item 5"], "one query"),
        (["search", "clip", "--id", "item 5", "--picture", "p.png"], "has none"),
        (["search", "PICTURE", "--index", "clip"], "A search by image needs the model"),
        (["search", "clip", "--vector", "short.npy"], r"Queries must be \(Q, 16\)"),
        (["index", "clip", "--vectors", "clip", "--dataset", "shop"], "Leave one out"),
        (["index", "clip", "--shards", "99"], "index.shards must be at most the number of parts"),
        (["search", "clip", "--id", "item 5", "--collection", "x"], "--collection belongs to an --engine"),
        (["load", "clip", "--engine", "http://localhost"], "must be milvus://HOST:PORT"),
        (["index", "clip", "--vectors", "clap"], "there are ['clip']. Did you mean"),
        (["import", "absent.npy"], "there is none"),
        (["import", "q.npy", "--name", "Clip 1"], "Use 'clip-1'"),
        (["schedule", "clip", "--cron", "0 3 * * *", "--model", "shop"], "Leave it out"),
        (["report", "clip"], "A report must be of images; clip are imported vectors"),
        (["train", "clip"], "Dataset 'clip' must have images; clip are imported vectors"),
        (["rm", "vectors", "clip"], "Remove them first"),
        (["export", "clip", "--to", "npy", "--out", "."], "is not there yet"),
        (["export", "clip", "--to", "npy", "--out", "a/b"], "Make it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_with_what_can(dml, filled, query, tmp_path, words, message):
    np.save(tmp_path / "q.npy", np.ones(DIM))
    np.save(tmp_path / "short.npy", np.ones(3))
    words = [query if word == "PICTURE" else word for word in words]
    done = dml(*words, "--store", filled)
    assert done.status == 2
    assert message.replace("\\", "") in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "column `label`"),
        (["", "a", "a", "b"] * 30, "30 of the 120"),
        (["a"] * ROWS, "at least 2 classes"),
        (ids_of(ROWS), "another item of its class"),
    ],
)
def test_an_evaluation_that_labels_do_not_allow_says_what_is_missing(dml, files, tmp_path, labels, message):
    store = ["--store", str(tmp_path / "store")]
    parquet.write_table(pa.table({} if labels is None else {"label": labels}), tmp_path / "labels.parquet")
    labelled = [] if labels is None else ["--attributes", str(tmp_path / "labels.parquet")]
    done = dml("import", str(files / "vectors.npy"), "--name", "bare", *labelled, *store)
    assert done.status == 0, done.err
    done = dml("evaluate", "bare", *store)
    assert done.status == 2
    assert message in done.err


def test_parquet_is_exported_for_any_reader_and_imported_again_as_it_was(dml, filled, tmp_path):
    done = dml("export", "clip", "--to", "parquet", "--out", "out", "--store", filled, "--json")
    assert (done.status, done.json["files"]) == (0, ["vectors.parquet"]), done.err
    table = parquet.read_table(tmp_path / "out" / "vectors.parquet")
    assert table.column_names == ["id", "label", "color", "image_uri", "embedding"]
    assert table["embedding"].type.value_type == pa.float32()
    assert {len(vector) for vector in table["embedding"].to_pylist()} == {DIM}
    np.testing.assert_allclose(np.stack(table.to_pandas()["embedding"]), unit(random_vectors()), atol=1e-6)
    store = ["--store", str(tmp_path / "store"), "--json"]
    again = dml("import", str(tmp_path / "out" / "vectors.parquet"), "--name", "again", *store)
    assert (again.json["normalized"], again.json["embeddings"]["items"]["classes"]) == (0, 4), again.err


def test_numpy_and_faiss_files_have_the_items_in_their_rows(dml, filled, tmp_path):
    for form in ("npy", "faiss"):
        assert dml("export", "clip", "--to", form, "--out", form, "--store", filled).status == 0
    vectors = np.load(tmp_path / "npy" / "vectors.npy")
    np.testing.assert_allclose(vectors, unit(random_vectors()), atol=1e-6)
    index = faiss.read_index(str(tmp_path / "faiss" / "index.faiss"))
    _, rows = index.search(vectors[5:6], 1)
    for form in ("npy", "faiss"):
        items = parquet.read_table(tmp_path / form / "items.parquet").to_pylist()
        assert items[int(rows[0, 0])]["id"] == "item 5"


@pytest.fixture
def copied(filled, tmp_path):
    """A copy of the filled store, for what changes it."""
    return str(shutil.copytree(filled, tmp_path / "copied"))


def enrolled(store, label, seed):
    from dml.retrieval.gallery import Gallery

    vectors = unit(random_vectors(2, seed=seed)).astype(np.float32)
    Gallery.open(store, "clip").enrol(label, vectors=vectors, attributes={"color": "blue"})
    return vectors


@pytest.mark.parametrize("form", ["parquet", "npy", "faiss"])
def test_an_export_holds_what_was_enrolled_once_it_is_built_in(dml, copied, tmp_path, form):
    vectors = enrolled(copied, "<b>bob", seed=5)
    words = ("export", "clip", "--to", form, "--store", copied)
    done = dml(*words, "--out", "before")
    assert (done.status, "not in them: 2 items" in done.out) == (0, True), done.err
    assert dml("reindex", "clip", "--store", copied).status == 0
    done = dml(*words, "--out", "out", "--json")
    assert (done.status, done.json["rows"], done.json["enrolled_since"]) == (0, ROWS + 2, 0), done.err
    name = {"parquet": "vectors"}.get(form, "items")
    items = parquet.read_table(tmp_path / "out" / f"{name}.parquet")
    rows = np.flatnonzero(np.array(items["label"].to_pylist()) == "<b>bob")
    assert items["color"].take(rows).to_pylist() == ["blue", "blue"]
    if form == "parquet":
        written = np.stack(items["embedding"].to_pylist()).astype(np.float32)
    elif form == "npy":
        written = np.load(tmp_path / "out" / "vectors.npy")
    else:
        written = faiss.read_index(str(tmp_path / "out" / "index.faiss")).reconstruct_n(0, ROWS + 2)
    assert {vector.tobytes() for vector in written[rows]} == {vector.tobytes() for vector in vectors}


@pytest.mark.parametrize("form", ["parquet", "npy", "faiss"])
def test_an_export_never_holds_what_was_forgotten(dml, copied, tmp_path, form):
    assert dml("forget", "clip", "--identity", "kind 1", "--store", copied).status == 0
    words = ("export", "clip", "--to", form, "--out", "out", "--store", copied)
    done = dml(*words)
    assert (done.status, "must not hold what is forgotten" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()
    assert dml("reindex", "clip", "--store", copied).status == 0
    assert dml(*words).status == 0
    name = {"parquet": "vectors"}.get(form, "items")
    assert "kind 1" not in parquet.read_table(tmp_path / "out" / f"{name}.parquet")["label"].to_pylist()


def test_an_export_never_touches_what_is_there(dml, filled, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("mine", "link"):
        assert dml("export", "clip", "--to", "npy", "--out", name, "--store", filled).status == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_export_into_a_folder_that_cannot_be_written_is_the_users_to_mend(dml, filled):
    done = dml("export", "clip", "--to", "npy", "--out", "/proc/clip", "--store", filled)
    assert done.status == 2
    assert "--out must be in a folder that can be written; /proc" in done.err


def test_vectors_are_removed_once_nothing_needs_them(dml, files, tmp_path):
    store = ["--store", str(tmp_path / "store"), "--json"]
    assert dml("import", str(files / "vectors.npy"), "--name", "bare", *store).status == 0
    done = dml("rm", "vectors", "bare", *store)
    assert (done.status, len(done.json["removed"])) == (0, 1)
    assert dml("vectors", *store).json["vectors"] == []
    assert not storage.list_folders(str(tmp_path / "store" / "vectors"))
