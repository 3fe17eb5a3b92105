"""Refs: how they are shown, and that nothing changes them."""

import pytest
from pydantic import BaseModel, ValidationError

from dml import refs
from dml.errors import IncompatibleArtifact
from dml.refs import (
    DatasetRef,
    EmbeddingsRef,
    ExternalModelRef,
    ItemsRef,
    ModelRef,
    PackageRef,
    require_dataset,
    require_package,
)

DATASET = DatasetRef(
    uri="s3://b/datasets/birds/0123456789ab",
    fingerprint="0123456789abcdef" * 4,
    name="birds",
    rows=3,
    classes=2,
    splits={},
    quarantined=0,
    schema_version=1,
)

ITEMS = ItemsRef(
    uri="/store/items", fingerprint="a" * 64, name="clip", rows=3, classes=0, attributes={}, schema_version=2
)
PACKAGE = PackageRef(uri="/p", fingerprint="b" * 64, dim=8)
EXTERNAL = ExternalModelRef(fingerprint="c" * 64, spec="timm:resnet50", dim=8)


def test_a_version_is_the_first_twelve_digits_of_the_fingerprint():
    assert DATASET.version == "0123456789ab"


def test_a_ref_is_shown_as_users_type_it():
    package = PackageRef(uri="/p", fingerprint="f" * 64, dim=1)
    model = ModelRef(name="m", version=3, package=package)
    assert (str(DATASET), str(model)) == ("birds@0123456789ab", "m/3")


def test_a_model_is_promoted_where_the_champion_is_its_alias():
    package = PackageRef(uri="/p", fingerprint="f" * 64, dim=1)
    promoted = [
        ModelRef(name="m", version=1, alias=a, package=package).promoted for a in ("champion", "x", None)
    ]
    assert promoted == [True, False, False]


def test_an_embedding_has_one_number_or_more():
    with pytest.raises(ValidationError, match="greater than 0"):
        PackageRef(uri="/p", fingerprint="f" * 64, dim=0)


KINDS = [
    kind
    for kind in vars(refs).values()
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_ref_takes_no_unknown_key_and_does_not_change(kind):
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["frozen"] is True


@pytest.mark.parametrize("items", [ITEMS, DATASET], ids=lambda ref: ref.kind)
@pytest.mark.parametrize("embedder", [PACKAGE, EXTERNAL], ids=lambda ref: ref.kind)
def test_embeddings_of_any_embedder_and_items_come_back_from_json_as_they_were(embedder, items):
    ref = EmbeddingsRef(uri="/table", fingerprint="d" * 64, embedder=embedder, items=items, dim=8, rows=3)
    again = EmbeddingsRef.model_validate_json(ref.model_dump_json())
    assert (again, type(again.embedder), type(again.items)) == (ref, type(embedder), type(items))


def test_what_needs_images_says_that_the_items_have_none():
    assert require_dataset(DATASET, "A report") is DATASET
    with pytest.raises(
        IncompatibleArtifact, match="A report needs images; these embeddings are of clip@aaaaaaaaaaaa, which"
    ):
        require_dataset(ITEMS, "A report")


def test_what_needs_the_weights_says_whose_they_would_be():
    assert require_package(PACKAGE, "A search by image") is PACKAGE
    with pytest.raises(IncompatibleArtifact, match=r"A search by image needs .* of timm:resnet50, which"):
        require_package(EXTERNAL, "A search by image")
