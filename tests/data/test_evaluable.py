"""A split that cannot be judged is refused before anything is trained for it."""

import pytest
from pyarrow import Table, parquet

from dml import storage
from dml.config import BootstrapConfig, EvaluationConfig, FewShotConfig, IngestConfig, NoSplit
from dml.data.dataset import read_rows
from dml.data.evaluable import classes_trained_on, require_evaluable, shared_classes
from dml.data.ingest import ingest
from dml.errors import InvalidData, InvalidSetting
from dml.refs import PackageRef
from tests.data.pictures import class_folders, picture, write


def dataset(folder, rows):
    """Of (label, split, role, camera) each."""
    write(folder, {f"{number}.png": picture(number) for number in range(len(rows))})
    names = ("label", "split", "role", "camera")
    table = [
        {"image": f"{number}.png", **dict(zip(names, row, strict=True))} for number, row in enumerate(rows)
    ]
    parquet.write_table(Table.from_pylist(table), folder / "m.parquet")
    return ingest(
        IngestConfig(name="d", source=str(folder / "m.parquet"), num_workers=1), str(folder / "store")
    )


def rows_of(*rows):
    """Two training classes, and the rows given as test: (label, role, camera)."""
    train = [(label, "train", "query", "a") for label in ("t", "u") for _ in (0, 1)]
    return train + [(label, "test", role, camera) for label, role, camera in rows]


ROLES = EvaluationConfig(role_attribute="role")
CAMERAS = EvaluationConfig(same_camera_attribute="camera")
BOTH = EvaluationConfig(role_attribute="role", same_camera_attribute="camera")
PLAIN = EvaluationConfig()


@pytest.mark.parametrize(
    ("rows", "config"),
    [
        ([("x", "query", "a"), ("x", "query", "a"), ("y", "query", "a")], PLAIN),
        ([("x", "query", "a"), ("x", "gallery", "a"), ("y", "query", "a")], ROLES),
        ([("x", "query", "a"), ("x", "query", "b"), ("y", "query", "a")], CAMERAS),
        ([("x", "query", None), ("x", "query", None), ("y", "query", "a")], CAMERAS),
        ([("x", "query", "a"), ("x", "gallery", "b"), ("y", "gallery", "a")], BOTH),
        ([("x", "query", "a"), ("x", "gallery", "a"), ("x", "gallery", "b"), ("y", "query", "a")], BOTH),
    ],
)
def test_a_split_with_a_positive_is_evaluable(tmp_path, rows, config):
    require_evaluable(dataset(tmp_path, rows_of(*rows)), config)


@pytest.mark.parametrize(
    ("rows", "config"),
    [
        ([("x", "query", "a"), ("y", "query", "a")], PLAIN),
        ([("x", "query", "a"), ("x", "query", "a"), ("y", "gallery", "a")], ROLES),
        ([("x", "query", "a"), ("x", "query", "a"), ("y", "query", "b")], CAMERAS),
        ([("x", "query", "a"), ("x", "gallery", "a"), ("y", "query", "b")], BOTH),
        ([("x", "query", "a"), ("x", "query", "b"), ("y", "gallery", "b")], BOTH),
    ],
)
def test_a_split_without_any_positive_is_refused(tmp_path, rows, config):
    with pytest.raises(InvalidData, match=r"at least one query with another item.*--split"):
        require_evaluable(dataset(tmp_path, rows_of(*rows)), config)


def test_intervals_need_queries_with_a_positive_of_two_classes(tmp_path):
    one = dataset(tmp_path / "one", rows_of(("x", "query", "a"), ("x", "query", "a"), ("y", "query", "a")))
    require_evaluable(one, PLAIN)
    require_evaluable(one, EvaluationConfig(bootstrap=BootstrapConfig(by="query")))
    with pytest.raises(InvalidData, match=r"at least 2 classes; the split 'test' of d@.* has them in 1"):
        require_evaluable(one, EvaluationConfig(bootstrap=BootstrapConfig()))


def test_a_split_of_one_class_or_none_is_refused(tmp_path):
    one = dataset(tmp_path / "one", rows_of(("x", "query", "a"), ("x", "query", "a")))
    with pytest.raises(InvalidData, match=r"at least 2 classes; the split 'test' of d@.* has 1 class"):
        require_evaluable(one, PLAIN)
    require_evaluable(one, PLAIN, split="train")
    source = class_folders(tmp_path / "source")
    none = ingest(IngestConfig(name="e", source=str(source), split=NoSplit()), str(tmp_path / "store"))
    with pytest.raises(
        InvalidData, match=r"has 0 classes.*train \(4 classes\).*dml train [a-z]+ --test OTHER"
    ):
        require_evaluable(none, PLAIN)


def test_what_the_evaluation_needs_must_exist(tmp_path):
    source = class_folders(tmp_path / "source", classes=8)
    ref = ingest(IngestConfig(name="d", source=str(source)), str(tmp_path / "store"))
    require_evaluable(ref, EvaluationConfig(few_shot=FewShotConfig(ways=4, shots=(1,), queries_per_class=4)))
    with pytest.raises(InvalidData, match=r"4 classes of 6 images.*has 0 of 4"):
        require_evaluable(
            ref, EvaluationConfig(few_shot=FewShotConfig(ways=4, shots=(1, 5), queries_per_class=1))
        )
    with pytest.raises(InvalidData, match=r"5 classes of 2 images.*has 4 of 4"):
        require_evaluable(
            ref, EvaluationConfig(few_shot=FewShotConfig(ways=5, shots=(1,), queries_per_class=1))
        )
    with pytest.raises(InvalidSetting, match="'camera'"):
        require_evaluable(ref, CAMERAS)


def test_labels_in_both_training_and_test_are_reported(tmp_path):
    whole = class_folders(tmp_path / "source")
    store = str(tmp_path / "store")
    learnt = ingest(IngestConfig(name="a", source=str(whole), split=NoSplit()), store)
    judged = ingest(IngestConfig(name="b", source=str(whole)), store)
    assert len(shared_classes(learnt, judged)) == 2
    assert shared_classes(judged, judged) == []


def test_classes_that_a_start_was_trained_on_are_known_also_behind_another_start(tmp_path):
    store, source = str(tmp_path / "store"), class_folders(tmp_path / "source", classes=8)
    judged = ingest(IngestConfig(name="judged", source=str(source)), store)
    everything = ingest(IngestConfig(name="all", source=str(source), split=NoSplit()), store)
    tested = sorted(read_rows(judged, split="test", columns=["label"])["label"].unique().to_pylist())
    first = PackageRef(uri="first", fingerprint="1", dim=2, dataset=everything)
    second = PackageRef(uri="second", fingerprint="2", dim=2, dataset=judged, initial=first)
    assert classes_trained_on(second, judged) == tested
    assert classes_trained_on(second.model_copy(update={"initial": None}), judged) == []
    storage.remove(everything.uri)
    assert classes_trained_on(second, judged) == []
