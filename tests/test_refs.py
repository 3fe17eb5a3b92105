"""Refs: how they are shown, and that nothing changes them."""

import pytest
from pydantic import ValidationError

from dml.refs import DatasetRef, ModelRef, PackageRef, Ref

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


def kinds(kind=Ref):
    return [kind, *(each for below in kind.__subclasses__() for each in kinds(below))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_ref_takes_no_unknown_key_and_does_not_change(kind):
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["frozen"] is True
