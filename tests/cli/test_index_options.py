"""`dml index --order-by COLUMN --dtype float16`: how rows and vectors are stored."""

import numpy as np
import pyarrow as pa
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
