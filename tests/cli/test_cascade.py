"""`dml index --first-stage` and `dml search --rerank`: what they print, and what they refuse."""

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`--store` of a store with 3,000 imported vectors, and an index of them with a first stage."""
    store = tmp_path_factory.mktemp("cascade")
    np.save(store / "vectors.npy", np.random.default_rng(0).standard_normal((3_000, 64)).astype(np.float32))
    table = import_vectors(str(store), "people", store / "vectors.npy").embeddings
    publish_index(
        str(store), build_index(str(store), "people", table, IndexConfig(first_stage="signs", recall=0.5))
    )
    return ["--store", str(store)]


def test_what_was_tried_is_shown_beside_what_was_kept(dml, place):
    shown = dml("indexes", "people", *place)
    assert "first stage, compared in full; recall@10 of 0.5 wanted" in shown.out
    assert shown.out.count("signs") == 2, "on the sample, and on all rows"


def test_a_search_explains_each_stage(dml, place):
    found = dml("search", "--id", "3", "--rerank", "k-reciprocal", "--explain", "-k", "2", *place)
    assert found.status == 0, found.err
    assert "plan: signs -> in full -> k-reciprocal over 3000 items" in found.out
    assert "stage signs: 3000 rows" in found.out
    assert "stage k-reciprocal: 100 rows" in found.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["index", "people", "--first-stage", "pca"],
            "--first-stage must be auto, pca16, pca32, signs, rabitq, pq4 or pq8; got 'pca'.",
        ),
        (["index", "people", "--dtype", "half"], "--dtype must be float32 or float16; got 'half'."),
        (["search", "--id", "3", "--rerank", "best"], "rerank must be query-expansion or k-reciprocal"),
        (
            ["search", "--id", "3", "--rerank", "k-reciprocal", "--group-by-identity", "best"],
            "--rerank goes without --engine and --group-by-identity",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(dml, place, arguments, message):
    done = dml(*arguments, *place)
    assert done.status == 2
    assert message in " ".join(done.err.split())


@pytest.mark.slow
def test_the_verb_builds_a_first_stage_or_says_how_far_it_is(dml, place):
    assert dml("index", "people", "--first-stage", "signs", "--recall", "0.5", *place).status == 0
    missed = dml("index", "people", "--first-stage", "pq8", "--recall", "1.0", *place)
    assert missed.status == 2
    assert "first_stage must reach recall@10 1; pq8 reaches" in " ".join(missed.err.split())
