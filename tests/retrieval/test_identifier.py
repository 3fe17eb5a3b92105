"""Identification: scopes in order with thresholds of their own, hints by name, one to one."""

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.embedding.external import import_vectors
from dml.errors import InvalidSetting, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate
from dml.retrieval.identifier import Identifier
from dml.retrieval.index import publish_index
from dml.retrieval.shards import open_index
from dml.retrieval.thresholds import find_thresholds
from dml.serving.searcher import Searcher
from tests.embedding.parts import make_dataset, make_package, png
from tests.embedding.vectors import write_parquet
from tests.retrieval.test_calibration import enrol, non_mated_probes, people


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store, ref = enrol(tmp_path_factory.mktemp("faces"), likeness=0.5, noise=0.15)
    calibrate(store, ref, fpir=0.3, by=["region", "device"])
    return store, ref


@pytest.fixture(scope="module")
def faces(store):
    return Identifier(open_index(store[1]), find_thresholds(*store))


@pytest.fixture(scope="module")
def uncalibrated(store):
    return Identifier(open_index(store[1]), None)


def embedder(identifier):
    return identifier.index.ref.embeddings.embedder.fingerprint


def identify(identifier, probe, **options):
    return identifier.identify(probe, embedder=embedder(identifier), **options)


def photo(label, *, seed=5, noise=0.15, **options):
    """Another photo of an enrolled person."""
    vectors, labels, _ = people(likeness=0.5, noise=0.15, **options)
    mine = vectors[labels == label].mean(axis=0)
    probe = mine / np.linalg.norm(mine) + noise / 5 * np.random.default_rng(seed).normal(size=len(mine))
    return (probe / np.linalg.norm(probe)).astype(np.float32)


def between(*labels):
    """A photo as similar to one as to the other."""
    middle = sum(photo(label, noise=0.0) for label in labels)
    return (middle / np.linalg.norm(middle)).astype(np.float32)


def test_an_enrolled_person_is_identified_in_the_first_scope_that_holds_it(faces):
    found = identify(faces, photo(3), scopes=["device = 'device 3'", "region = 'region 0'", ""])
    assert (found.status, found.identity, found.scope) == ("identified", "person 3", "device = 'device 3'")
    elsewhere = identify(faces, photo(3), scopes=["region = 'region 4'", ""])
    assert (elsewhere.identity, elsewhere.scope) == ("person 3", "")
    assert [tried.candidates for tried in elsewhere.tried] == [0, 1]


def test_a_non_mated_probe_is_unknown_at_the_rate_that_was_asked_for(faces):
    non_mated, _, regions = non_mated_probes(per_region=40, noise=0.15, likeness=0.5)
    scopes = [[f"region = 'region {region}'", ""] for region in regions]
    found = [identify(faces, probe, scopes=tried) for probe, tried in zip(non_mated, scopes, strict=True)]
    taken = np.mean([each.status != "unknown" for each in found])
    assert taken < 0.3
    assert {each.identity for each in found if each.status == "unknown"} == {None}


def test_every_scope_gets_its_share_and_its_own_threshold(faces):
    found = identify(faces, -photo(3), scopes=["device = 'device 3'", "region = 'region 0'", ""], fpir=0.3)
    assert [tried.share for tried in found.tried] == pytest.approx([0.1] * 3)
    nine_people, _, everybody = (tried.threshold for tried in found.tried)
    assert nine_people < everybody
    alone = identify(faces, -photo(3), fpir=0.3)
    assert alone.tried[0].threshold < everybody


def test_between_near_candidates_the_attribute_is_named_and_no_value(faces):
    probe = between(5, 190)  # of two regions and two devices
    found = identify(faces, probe, threshold=0.5, margin=0.08)
    assert (found.status, found.identity, found.id) == ("needs_hint", None, None)
    assert found.ask in ("region", "device")
    assert not any(f"{found.ask} " in str(value) for value in found.model_dump(exclude={"tried"}).values())


def test_a_hint_resolves_and_a_wrong_one_is_no_identity(faces):
    probe = between(5, 190)
    options = {"threshold": 0.5, "margin": 0.08}
    right = identify(faces, probe, **options, hint={"device": "device 30"})
    assert (right.status, right.identity) == ("identified", "person 190")
    assert identify(faces, probe, **options, hint={"device": "device 7"}).status == "unknown"
    assert identify(faces, probe, **options, hint={"device": "no device"}).status == "unknown"


def test_an_attribute_that_must_not_be_asked_is_not(faces):
    probe = between(5, 190)
    assert identify(faces, probe, threshold=0.5, margin=0.08, never_ask=["device"]).ask == "region"
    found = identify(faces, probe, threshold=0.5, margin=0.08, never_ask=["device", "region"])
    assert (found.status, found.ask) == ("undecided", None)


def test_within_the_margin_of_the_best_nobody_else_is_a_candidate(faces):
    probe = photo(0, noise=0.0)
    assert identify(faces, probe, threshold=-1.0).status == "needs_hint"
    found = identify(faces, probe, threshold=-1.0, margin=0.01)
    assert (found.status, found.identity) == ("identified", "person 0")


def test_an_index_without_thresholds_says_what_to_do_or_takes_one(uncalibrated):
    with pytest.raises(
        MissingArtifact, match=r"Identifying needs calibrated thresholds.* dml calibrate faces"
    ):
        identify(uncalibrated, photo(3))
    assert identify(uncalibrated, photo(3), threshold=0.9).identity == "person 3"


def test_a_scope_in_which_nobody_is_is_passed_over(faces):
    found = identify(faces, photo(3), scopes=["device = 'never seen'", ""])
    assert found.identity == "person 3"
    assert (found.tried[0].threshold, found.tried[0].candidates) == (None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scopes": []}, "scopes must name a part"),
        ({"scopes": ["id = 'image 3'"]}, "needs a calibrated scope"),
        ({"scopes": ["regoin = 'x'"]}, "regoin"),
        ({"hint": {"phone": "1234"}}, "hint must name attributes of the items"),
        ({"never_ask": ["devise"]}, "Did you mean 'device'"),
        ({"fpir": 0.0}, r"fpir must be a number in \(0, 0.5\]"),
        ({"fpir": "0.01"}, r"fpir must be a number in .*; got '0.01'"),
        ({"scopes": "region = 'region 0'"}, r"scopes must be a list; got .* Pass \["),
        ({"never_ask": "device"}, "never_ask must be a list"),
        ({"hint": ["device"]}, "hint must be attribute to value; got list"),
        ({"threshold": float("nan")}, r"threshold must be a cosine, in \[-1, 1\]; got nan"),
        ({"threshold": True}, "threshold must be a cosine"),
        ({"threshold": 0.5, "fpir": 0.1}, "threshold and fpir each decide alone; got 0.5 and 0.1"),
        ({"fpir": 1e-5}, "needs 10 pairs of different identities"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(faces, options, message):
    with pytest.raises(InvalidSetting, match=message):
        identify(faces, photo(3), **options)


def test_two_images_are_the_same_above_the_threshold_of_a_false_match_rate(faces):
    same = faces.verify(photo(3), photo(3, seed=8), embedder=embedder(faces), fmr=0.01)
    other = faces.verify(photo(3), photo(4), embedder=embedder(faces), fmr=0.01)
    assert (same.same, other.same) == (True, False)
    vectors, labels, _ = people(likeness=0.5, noise=0.15)
    impostors = (vectors @ vectors.T)[labels[:, None] != labels]
    assert np.mean(impostors >= same.threshold) == pytest.approx(0.01, rel=0.1)


def test_a_threshold_beside_a_false_match_rate_is_refused(faces):
    with pytest.raises(InvalidSetting, match="threshold and fmr each decide alone"):
        faces.verify(photo(3), photo(4), embedder=embedder(faces), fmr=0.01, threshold=0.5)


def test_an_image_is_compared_with_all_images_of_an_identity(faces):
    vectors, labels, _ = people(likeness=0.5, noise=0.15)
    found = faces.verify(photo(3), "person 3", embedder=embedder(faces), fmr=0.01)
    assert (found.same, found.images, found.identity) == (True, 3, "person 3")
    assert found.similarity == pytest.approx(float((vectors[labels == 3] @ photo(3)).max()))
    best = [max((vectors[labels == label] @ vectors[row]).max() for label in (7,)) for row in range(300, 600)]
    assert faces.verify(photo(3), "person 7", embedder=embedder(faces), fmr=0.01).same is False
    assert np.mean(np.array(best) >= found.threshold) < 0.05


def test_a_false_match_rate_needs_an_identity_thresholds_and_pairs(faces, uncalibrated):
    with pytest.raises(MissingArtifact, match="must be a label of index"):
        faces.verify(photo(3), "person 999", embedder=embedder(faces))
    with pytest.raises(InvalidSetting, match="a false-match rate of 1e-07 needs 10 pairs"):
        faces.verify(photo(3), photo(4), embedder=embedder(faces), fmr=1e-7)
    with pytest.raises(MissingArtifact, match="Comparing needs calibrated thresholds"):
        uncalibrated.verify(photo(3), photo(4), embedder=embedder(faces))
    given = uncalibrated.verify(photo(3), photo(4), embedder=embedder(faces), threshold=-1.0)
    assert (given.same, given.fmr) == (True, None)


def test_an_open_searcher_takes_new_thresholds_when_it_is_refreshed(tmp_path):
    store, ref = enrol(tmp_path, likeness=0.5, noise=0.15)
    searcher = Searcher.open(store)
    with pytest.raises(MissingArtifact, match="has none"):
        searcher.identify(photo(3))
    calibrate(store, ref, fpir=0.3)
    assert searcher.refresh() is False
    assert searcher.identify(photo(3)).identity == "person 3"
    assert searcher.verify(photo(3), photo(4), fmr=0.01).same is False
    assert searcher.search_identities("image 9", k=1).identities[0].identity == "person 3"


def test_an_image_file_is_identified_compared_and_searched_by_its_bytes(tmp_path):
    store = str(tmp_path / "store")
    dataset = make_dataset(tmp_path / "images", store, rows=40)
    table = embed(store, make_package(store), dataset)
    publish_index(store, build_index(store, "shelves", table, IndexConfig()))
    searcher = Searcher.open(store)
    found = searcher.identify(png(17), threshold=0.9999, scopes=["shelf = 'bottom'", ""])
    assert (found.identity, found.id, found.scope) == ("class 7", "00017.png", "")
    assert searcher.verify(png(17), png(17), threshold=0.99).same
    assert searcher.verify(png(17), "class 7", threshold=0.99).images == 4
    assert searcher.search_identities(png(17), k=2).identities[0].identity == "class 7"


@pytest.mark.parametrize(
    ("probe", "got"),
    [
        ("photo.jpg", "str"),
        (np.zeros((1, 24)), r"shape \(1, 24\). Embed it as the items were"),
        (np.zeros(3), r"shape \(3,\). Embed it as the items were"),
        (None, "NoneType. Pass Path"),
    ],
    ids=["a path", "a row", "too short", "nothing"],
)
def test_what_is_no_image_and_no_vector_is_refused(store, probe, got):
    searcher = Searcher.open(store[0])
    with pytest.raises(InvalidSetting, match=f"image file's bytes, or a vector .*; got {got}"):
        searcher.identify(probe, threshold=0.5)
    with pytest.raises(InvalidSetting, match="A probe must be"):
        searcher.verify(photo(3), np.zeros(3), threshold=0.5)


def test_more_candidates_than_can_be_told_apart_are_refused_and_not_cut(tmp_path):
    _, ref = enrol(tmp_path, regions=1, per_region=1_400, labelled=False)
    everybody = Identifier(open_index(ref), None)
    with pytest.raises(
        InvalidSetting, match="At most 4096 identities can be told apart; more than that of the"
    ):
        identify(everybody, people()[0][0], threshold=-1)
    assert identify(everybody, people()[0][0], threshold=1).status == "unknown"


def test_an_identity_of_many_images_hides_no_other_candidate(tmp_path):
    random = np.random.default_rng(0)
    near = np.eye(8)[0] + 0.001 * random.normal(size=(5_000, 8))
    other = np.array([[1.0, 0.2, 0, 0, 0, 0, 0, 0]])
    vectors = np.concatenate([near, other]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = ["filmed"] * 5_000 + ["other"]
    ids = [str(row) for row in range(5_001)]
    store = str(tmp_path / "store")
    report = import_vectors(store, "faces", write_parquet(tmp_path, vectors, id=ids, label=labels))
    ref = build_index(store, "faces", report.embeddings, IndexConfig())
    found = identify(Identifier(open_index(ref), None), vectors[0], threshold=0.9)
    assert (found.status, found.tried[0].candidates) == ("undecided", 2)


def test_an_index_without_labels_is_told_to_give_a_threshold(tmp_path):
    _, ref = enrol(tmp_path, regions=1, per_region=4, labelled=False)
    with pytest.raises(MissingArtifact, match=r"Its items have no labels to calibrate them with: give a"):
        identify(Identifier(open_index(ref), None), people()[0][0])
