"""`dml search`: what it prints, what it writes, and what it refuses."""

import os
import re
from pathlib import Path

import pytest

from tests.data.pictures import huge_png


def test_nothing_is_written_unless_a_picture_is_requested(dml, store, query, tmp_path, monkeypatch):
    monkeypatch.chdir("/proc")  # where nobody can write, root neither
    done = dml("search", query, "--store", store, "--json")
    assert done.status == 0, done.err
    keys = {"answers", "index", "model", "embedder", "plan", "execution", "picture", "identities"}
    assert set(done.json) == keys
    assert done.json["picture"] is None
    target = tmp_path / "answers.png"
    drawn = dml("search", query, "--store", store, "--json", "--picture", str(target))
    assert drawn.json["picture"] == str(target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_explain_prints_count_reason_and_recall_with_its_basis(dml, store, query):
    done = dml("search", query, "--store", store, "--where", "brand = 'Nike'", "--explain")
    assert done.status == 0, done.err
    for line in ("reason: Flat compares with every match anyway", "matches: 4 of 14", "recall: 1, exact"):
        assert line in done.out.splitlines()
    refused = dml("search", query, "--store", store, "--explain", "--engine", "milvus://127.0.0.1:1")
    assert refused.status == 2
    assert "--explain is for an index in this process" in refused.err


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        (["brand = 'Nike'"], ["[0]", "[4]", "[8]", "[12]"]),
        (["brand = 'Acme | Sons'"], ["[2]", "[6]", "[10]"]),
        (["price is null"], ["[0]", "[4]", "[8]", "[12]"]),
        (["day >= 2024-08-01"], ["[7]", "[8]"]),
        (["brand = 'Nike'", "price is not null"], []),
    ],
    ids=" ".join,
)
def test_filters_narrow_the_answers(dml, store, query, where, ids):
    filters = [word for each in where for word in ("--where", each)]
    done = dml("search", query, "--store", store, "--json", *filters)
    assert sorted(answer["id"] for answer in done.json["answers"]) == sorted(ids)
    assert ("no more match" in done.json["plan"]) == (len(ids) < 10)


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ("brand=Nike", "Write: brand = 'Nike'\n  brand=Nike\n        ^"),
        ("brand=Nike|Adidas", "Write: brand in ('Nike', 'Adidas')\n  brand=Nike|Adidas\n        ^"),
        ("brand == 'Nike'", "Write a single =.\n  brand == 'Nike'\n         ^"),
        ("brand = 'Nkie'", "Did you mean 'Nike'?\n  brand = 'Nkie'\n          ^"),
        ("brand = '\x1b[31m", "got \"'\".*\n  brand = '·[31m\n          ^"),
    ],
)
def test_a_filter_that_cannot_be_followed_is_refused_with_a_caret_at_the_mistake(
    dml, store, query, filter, says
):
    done = dml("search", query, "--store", store, "--where", filter)
    assert done.status == 2
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), done.err)
    assert done.out == ""


def test_a_picture_does_not_replace_what_is_no_picture_of_answers(dml, store, query, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(query)
    os.mkfifo(tmp_path / "pipe.png")
    held = Path(query).read_bytes()
    for name in ("notes.txt", "query.png", "link.png", "folder.png", "pipe.png", "missing/x.png"):
        done = dml("search", query, "--store", store, "--picture", str(tmp_path / name))
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert f"--picture must be a PNG file to write; got {tmp_path / name}" in done.err
    assert (Path(query).read_bytes(), (tmp_path / "notes.txt").read_text()) == (held, "mine")


def test_arguments_that_are_not_utf8_are_one_line(dml, store, query):
    for words in (["search", query, "--where", "brand=\udcff"], ["forget", "labels", "\udcff"]):
        done = dml(*words, "--store", store)
        assert (done.status, "Traceback" in done.err) == (2, False)
        assert r"\udcff" in done.err


def test_no_index_says_how_to_make_one(dml, tmp_path, query):
    done = dml("search", query, "--store", str(tmp_path))
    assert done.status == 2
    assert "dml index" in done.err


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("/dev/zero", "not a regular file"),
        ("/proc/self/environ", "empty file"),
        ("/proc", "not a regular file"),
        ("nowhere.png", "missing file"),
    ],
)
def test_a_query_that_is_no_file_is_refused_at_once(dml, store, query, says):
    done = dml("search", query, "--store", store)
    assert done.status == 2
    assert says in done.err


def test_a_query_of_more_pixels_than_are_decoded_is_refused(dml, store, tmp_path):
    (tmp_path / "bomb.png").write_bytes(huge_png(9_000))
    done = dml("search", str(tmp_path / "bomb.png"), "--store", store)
    assert done.status == 2
    assert "at most 64000000 pixels; got 9000 x 9000" in done.err
