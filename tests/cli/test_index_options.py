"""`dml index --order-by COLUMN --dtype float16`: how rows and vectors are stored; and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.embedding.external import import_vectors
from dml.retrieval.index import find_index
from dml.retrieval.shards import open_index


def test_rows_are_ordered_by_the_column_and_vectors_are_stored_in_half(dml, tmp_path):
    drawn = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", drawn)
    regions = ["east", "north", "west"] * 20
    parquet.write_table(pa.table({"region": regions}), tmp_path / "items.parquet")
    import_vectors(str(tmp_path), "people", tmp_path / "vectors.npy", attributes=tmp_path / "items.parquet")
    place = ["--store", str(tmp_path)]
    done = dml("index", "people", "--order-by", "region", "--dtype", "float16", *place)
    assert done.status == 0, done.err
    index = open_index(find_index(str(tmp_path), "people"))
    assert index.items["region"].to_pylist() == sorted(regions)
    assert index.vectors.dtype == "float16"
    unknown = dml("index", "people", "--order-by", "regoin", *place)
    assert unknown.status == 2
    assert "order_by must be one of the columns" in " ".join(unknown.err.split())


def test_the_plan_of_an_index_is_explained_and_follows_the_memory(dml, tmp_path):
    drawn = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", drawn)
    import_vectors(str(tmp_path), "people", tmp_path / "vectors.npy")
    place = ["--store", str(tmp_path)]
    built = dml("index", "people", "--memory", "1M", "--explain", *place)
    assert built.status == 0, built.err
    assert "Flat by the plan: exact, and within the bounds" in built.out
    assert "Flat by the plan" in dml("indexes", "people", *place).out, "kept beside the index"
    named = dml("index", "people", "--factory", "HNSW8", "--explain", *place)
    assert "by the plan" not in named.out
    ignored = dml("index", "people", "--factory", "HNSW8", "--memory", "1M", *place)
    assert ignored.status == 2
    assert "--memory bounds what --factory auto plans" in ignored.err
    assert dml("index", "people", "--memory", "10", *place).status == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--workers", "4"], "--workers embed images, and imported vectors are indexed as they are; got 4"),
        (["--first-stage", "pq4"], "must have at least 16 rows for first_stage pq4; it has 9. Use auto"),
        (["--model", "shop"], "Imported vectors are indexed as they are; got --vectors"),
    ],
    ids=["workers", "first stage", "model"],
)
def test_an_option_that_could_not_be_followed_is_refused(dml, tmp_path, option, said):
    store = ["--store", str(tmp_path / "store")]
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32))
    import_vectors(str(tmp_path / "store"), "few", tmp_path / "few.npy")
    refused = dml("index", "few", "--vectors", "few", *option, *store)
    assert refused.status == 2
    assert said in " ".join(refused.err.split())
    assert dml("indexes", *store, "--json").json["indexes"] == []
