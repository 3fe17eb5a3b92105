"""`dml report DATASET`: what a dataset holds, before any training."""

from pathlib import Path

import numpy as np
import pytest

from dml.reports import DatasetReport


def test_a_dataset_alone_has_a_report(dml, store):
    done = dml("report", "labels", "--store", store)
    assert done.status == 0, done.err
    assert "near-duplicates" in done.out
    page = Path(done.out.rpartition("open ")[2].strip())
    assert "What is in labels@" in page.read_text()
    assert "<script>" not in page.read_text()


def test_json_is_the_documented_type(dml, store):
    done = dml("report", "labels", "--store", store, "--json")
    report = DatasetReport.model_validate(done.json)
    assert report.dataset.name == "labels"
    assert [balance.split for balance in report.findings.splits] == ["train", "test"]
    assert Path(report.report.page).is_file()
    assert report.findings.embedder is None


def test_an_embeddings_table_that_exists_is_named_by_its_folder_or_path(dml, store):
    (table,) = Path(store, "embeddings").iterdir()
    for name in (table.name, str(table)):
        done = dml("report", "labels", "--store", store, "--embeddings", name, "--json")
        assert done.status == 0, done.err
        assert done.json["findings"]["embedder"] == f"embeddings {name}"
        assert done.json["findings"]["num_suspected"] is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["labels", "--against", "a/1"], "Only dml report MODEL DATASET has --against"),
        (["a/1", "labels", "--model", "b/1"], "Only dml report DATASET alone has --model"),
        (["a/1", "labels", "--embeddings", "t"], "Only dml report DATASET alone has --embeddings"),
        (["a/1", "labels", "third"], "got 3 names"),
        (["labels", "--model", "a/1", "--embeddings", "t"], "Leave one out"),
        (["labels", "--embeddings", "missing"], "missing"),
        (["labels", "--embeddings", "../x;y"], "x;y"),
        (["none"], "none"),
        (["labels", "--set", "max_distance=65"], "max_distance"),
        (["labels", "--set", "failures=3"], "failures"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_does_not_fit_is_refused(dml, store, words, said):
    done = dml("report", *words, "--store", store, "--json")
    assert done.status == 2, done.err
    assert said in done.json["error"]


def test_a_report_of_imported_vectors_says_what_looks_at_them(dml, tmp_path):
    np.save(tmp_path / "clip.npy", np.eye(8, dtype=np.float32))
    assert dml("import", "clip.npy", "--store", "s").status == 0
    for names in (["clip"], ["clip", "clip"], ["labels", "clip"]):
        done = dml("report", *names, "--store", "s")
        assert done.status == 2
        assert (
            "clip are imported vectors, which have none. Evaluate them by their labels: dml evaluate clip"
            in (done.err.replace("\n", " "))
        )
