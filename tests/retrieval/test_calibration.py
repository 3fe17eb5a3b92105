"""Calibrating an index: its items are the probes, scopes have tails of their own, promises are checked."""

import re
from datetime import timedelta

import numpy as np
import pytest

from dml import storage
from dml.config import IndexConfig, IngestConfig
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.embedding.external import import_vectors
from dml.embedding.table import cut_table
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting
from dml.integrity import check_store
from dml.lineage import dependents, remove, remove_named, unneeded
from dml.refs import ShardRef
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate, calibrate_alike
from dml.retrieval.identifier import Identifier
from dml.retrieval.index import find_index, publish_index
from dml.retrieval.shards import open_index
from dml.retrieval.thresholds import find_thresholds, find_thresholds_ref, threshold_for
from tests.embedding.parts import make_package
from tests.embedding.vectors import write_parquet

REGIONS, PER_REGION, IMAGES, DIM = 6, 60, 3, 24


def people(*, seed=0, regions=REGIONS, per_region=PER_REGION, likeness=1.2, noise=0.7):
    """Vectors of people whose regions look alike, and their labels and regions."""
    random = np.random.default_rng(seed)
    centers = likeness * random.normal(size=(regions, DIM))
    region = np.repeat(np.arange(regions), per_region)
    identity = centers[region] + random.normal(size=(len(region), DIM))
    rows = np.repeat(np.arange(len(region)), IMAGES)
    vectors = identity[rows] + noise * random.normal(size=(len(rows), DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), rows, region[rows]


def enrol(folder, *, labelled=True, name="faces", **options):
    """A store with an index of these people."""
    vectors, labels, regions = people(**options)
    columns = {
        "id": [f"image {row}" for row in range(len(vectors))],
        "region": [f"region {region}" for region in regions],
        "device": [f"device {label % 40}" for label in labels],
    }
    if labelled:
        columns["label"] = [f"person {label}" for label in labels]
    store = str(folder / "store")
    folder.mkdir(exist_ok=True)
    report = import_vectors(store, name, write_parquet(folder, vectors, **columns))
    ref = build_index(store, name, report.embeddings, IndexConfig())
    publish_index(store, ref)
    return store, ref


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory):
    return enrol(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def calibrated(enrolled):
    store, ref = enrolled
    report = calibrate(store, ref, fpir=0.3, scopes=["region in ('region 1', 'region 2')"], by=["region"])
    return store, ref, report, find_thresholds(store, ref)


def fpir_of_non_mated_probes(threshold, region=None):
    """Of people of the same regions who are not enrolled, searched in the index or in one region of it."""
    enrolled, _, of_enrolled = people()
    gallery = enrolled if region is None else enrolled[of_enrolled == region]
    non_mated, _, of_probes = non_mated_probes()
    probes = non_mated if region is None else non_mated[of_probes == region]
    return float(((probes @ gallery.T).max(axis=1) >= threshold).mean())


def non_mated_probes(per_region=200, noise=0.7, likeness=1.2):
    centers = likeness * np.random.default_rng(0).normal(size=(REGIONS, DIM))
    random = np.random.default_rng(99)
    region = np.repeat(np.arange(REGIONS), per_region)
    vectors = centers[region] + random.normal(size=(len(region), DIM))
    vectors += noise * random.normal(size=vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), None, region


def test_non_mated_probes_meet_the_fpir_of_the_whole_gallery(calibrated):
    *_, report, _ = calibrated
    whole = report.scopes[0]
    assert (whole.scope, whole.identities, whole.basis) == ("", 360, "scope")
    assert whole.share == pytest.approx(0.1)
    assert whole.checked.low <= whole.share <= whole.checked.high
    assert 0.5 * whole.share < fpir_of_non_mated_probes(whole.threshold) < 1.7 * whole.share


def test_a_scope_of_similar_people_has_a_higher_threshold_than_as_many_of_all(calibrated):
    *_, report, thresholds = calibrated
    region = next(scope for scope in report.scopes if scope.scope == "region = 'region 3'")
    assert region.identities == PER_REGION
    as_many_of_all = thresholds.scopes[0].tail.threshold(PER_REGION, region.share)
    assert region.threshold > as_many_of_all + 0.02
    assert fpir_of_non_mated_probes(as_many_of_all, 3) > 2 * region.share
    assert fpir_of_non_mated_probes(region.threshold, 3) < 1.5 * region.share


def test_every_value_of_a_column_and_every_filter_is_a_scope(calibrated):
    *_, report, _ = calibrated
    assert [scope.scope for scope in report.scopes] == [
        "",
        "region in ('region 1', 'region 2')",
        *(f"region = 'region {number}'" for number in range(REGIONS)),
    ]
    assert report.num_promised == len(report.scopes)


@pytest.fixture(scope="module")
def by_device(tmp_path_factory):
    """40 devices of 9 people each, of any region."""
    store, ref = enrol(tmp_path_factory.mktemp("devices"))
    return calibrate(store, ref, fpir=0.1, by=["device"]), find_thresholds(store, ref)


def test_a_small_scope_uses_the_pooled_tail_below_the_gallery_where_held_out_probes_allow_it(by_device):
    report, thresholds = by_device
    whole, *devices = report.scopes
    assert len(devices) == 40
    assert {device.basis for device in devices} == {"pooled"}
    assert thresholds.pooled["device"].meets_target
    assert np.median([device.threshold for device in devices]) < whole.threshold - 0.05
    checked = np.mean([device.checked.fpir for device in devices])
    assert 0.01 < checked <= 0.06


def test_a_pooled_threshold_is_not_below_the_gallery_where_held_out_probes_do_not_allow_it(by_device):
    report, thresholds = by_device
    unsure = thresholds.pooled["device"].model_copy(update={"meets_target": False})
    changed = thresholds.model_copy(update={"pooled": {"device": unsure}})
    found = threshold_for(changed, "device = 'device 1'", "device", 9, 0.05)
    assert (found.basis, found.similarity) == ("pooled", report.scopes[0].threshold)


def test_a_value_that_came_later_has_the_threshold_of_the_others(by_device):
    _, thresholds = by_device
    unseen = threshold_for(thresholds, "device = 'new'", "device", 9, 0.05)
    assert unseen.basis == "pooled"
    assert unseen.similarity == thresholds.pooled["device"].tail.threshold(9, 0.05)


def test_a_threshold_that_only_copies_reach_is_refused(by_device):
    _, thresholds = by_device
    place = next(n for n, scope in enumerate(thresholds.scopes) if scope.scope == "device = 'device 1'")
    scopes = list(thresholds.scopes)
    few_look_alike = scopes[place].tail.model_copy(update={"shape": 4.0})
    scopes[place] = scopes[place].model_copy(update={"tail": few_look_alike})
    changed = thresholds.model_copy(update={"scopes": scopes})
    with pytest.raises(InvalidSetting, match=r"'device 1'.* which only copies reach. Enrol more"):
        threshold_for(type(thresholds)(**dict(changed)), "device = 'device 1'", "device", 9, 0.05)


def test_a_promise_that_the_pairs_cannot_keep_is_refused_with_what_it_needs(tmp_path):
    store, ref = enrol(tmp_path)
    (whole,) = calibrate(store, ref, fpir=0.0005).scopes
    assert whole.threshold is None
    assert "an FPIR of 0.0005 among 360 identities needs 10 pairs of different" in whole.refused


def test_a_scope_that_was_not_calibrated_is_refused_with_the_command(calibrated):
    thresholds = calibrated[-1]
    with pytest.raises(
        InvalidSetting, match=r"""scope "device = 'device 1'" is not, .* --scope .* or --by device"""
    ):
        threshold_for(thresholds, "device = 'device 1'", "device", 9, 0.01)


def test_a_lower_fpir_than_calibrated_is_promised_where_the_pairs_are_enough(calibrated):
    thresholds = calibrated[-1]
    strict, loose = (threshold_for(thresholds, "", None, 360, fpir) for fpir in (0.05, 0.4))
    assert strict.similarity > loose.similarity
    assert 10 <= strict.beyond < loose.beyond


def test_calibrating_changes_nothing_in_the_index_and_replaces_what_was_calibrated(tmp_path):
    store, ref = enrol(tmp_path)
    before = storage.read_manifest(ref.uri)
    assert (find_thresholds(store, ref), find_thresholds_ref(store, ref)) == (None, None)
    calibrate(store, ref, fpir=0.1, by=["region"])
    calibrate(store, ref, fpir=0.2)
    assert len(find_thresholds(store, ref).scopes) == 1
    assert find_thresholds_ref(store, ref).fpir == 0.2
    assert storage.read_manifest(ref.uri) == before
    assert find_index(store, "faces") == ref


def test_a_promise_that_cannot_be_kept_leaves_the_former_thresholds(tmp_path):
    store, ref = enrol(tmp_path, regions=2, per_region=30)
    calibrate(store, ref, fpir=0.3)
    former = find_thresholds(store, ref)
    with pytest.raises(InvalidSetting, match=r"needs 10 pairs.* for an FPIR of 0.3 stay"):
        calibrate(store, ref, fpir=1e-9)
    assert find_thresholds(store, ref) == former


def test_a_missing_value_of_a_column_is_no_scope(tmp_path):
    vectors, labels, _ = people(regions=2, per_region=30)
    columns = {
        "id": [str(row) for row in range(len(vectors))],
        "label": [f"person {label}" for label in labels],
        "shop": [["x", "", "y"][label % 3] for label in labels],
        "size": [[1.5, float("nan"), 2.5][label % 3] for label in labels],
    }
    store = str(tmp_path / "store")
    report = import_vectors(store, "faces", write_parquet(tmp_path, vectors, **columns))
    ref = build_index(store, "faces", report.embeddings, IndexConfig())
    scopes = calibrate(store, ref, fpir=0.4, by=["shop", "size"]).scopes
    assert [scope.scope for scope in scopes[1:]] == ["shop = 'x'", "shop = 'y'", "size = 1.5", "size = 2.5"]


def test_a_scope_of_nobody_says_that_it_needs_no_threshold(tmp_path):
    store, ref = enrol(tmp_path, regions=2, per_region=30)
    nobody = "region = 'region 0' and region = 'region 1'"
    scopes = calibrate(store, ref, fpir=0.4, scopes=[nobody]).scopes
    assert not scopes[0].refused
    assert "No item is in scope" in scopes[1].refused


def test_thresholds_are_kept_and_removed_with_their_index(tmp_path):
    store, ref = enrol(tmp_path)
    thresholds = calibrate(store, ref, fpir=0.1).thresholds
    assert not [r for r in unneeded(store, [], grace=timedelta(0)) if r.kind == "thresholds"]
    assert {checked.kind for checked in check_store(store)} >= {"thresholds", "index"}
    assert "thresholds" in {artifact.kind for artifact in dependents(store, ref.embeddings.uri)}
    remove_named(store, "index", "faces")
    assert not storage.exists(thresholds.uri)


def test_thresholds_of_a_superseded_index_are_garbage(tmp_path):
    store, former = enrol(tmp_path)
    old = calibrate(store, former, fpir=0.1).thresholds
    _, ref = enrol(tmp_path, seed=1)
    new = calibrate(store, ref, fpir=0.1).thresholds
    garbage = unneeded(store, [], keep=1, grace=timedelta(0))
    assert {former.uri, old.uri} <= {removal.uri for removal in garbage}
    remove(garbage)
    assert (storage.exists(old.uri), storage.exists(new.uri)) == (False, True)


def test_a_flipped_byte_of_the_thresholds_is_not_used(tmp_path):
    store, ref = enrol(tmp_path)
    uri = calibrate(store, ref, fpir=0.1).thresholds.uri
    file = tmp_path / "store" / "thresholds" / ref.version / "thresholds.json"
    content = file.read_bytes()
    file.write_bytes(
        content.replace(b'"fpir": 0.1', b'"fpir": 0.9') if b'"fpir": 0.1' in content else content[::-1]
    )
    with pytest.raises(CorruptArtifact):
        find_thresholds(store, ref)
    assert uri.endswith(ref.version)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fpir": 0.0}, r"fpir must be a number in \(0, 0.5\]; got 0.0"),
        ({"by": ["regoin"]}, "--by must name a column of the items"),
        ({"scopes": ["regoin = 'x'"]}, "regoin"),
    ],
    ids=lambda case: str(case)[:20],
)
def test_what_cannot_be_calibrated_is_refused(enrolled, options, message):
    with pytest.raises(InvalidSetting, match=message):
        calibrate(*enrolled, **options)


def test_items_without_labels_are_refused(tmp_path):
    store, ref = enrol(tmp_path, labelled=False, regions=2, per_region=5)
    with pytest.raises(IncompatibleArtifact, match="Thresholds need labels"):
        calibrate(store, ref)


def test_an_index_in_shards_has_the_thresholds_of_one_bundle(tmp_path):
    vectors, labels, regions = people()
    columns = {
        "id": [f"image {row}" for row in range(len(vectors))],
        "label": [f"person {label}" for label in labels],
        "region": [f"region {region}" for region in regions],
    }
    store, file = str(tmp_path / "store"), write_parquet(tmp_path, vectors, **columns)
    table = import_vectors(store, "faces", file, block_bytes=40_000).embeddings
    whole = build_index(store, "faces", table, IndexConfig())
    parts = [build_index(store, "cut", part, IndexConfig()) for part in cut_table(table, 3)]
    shards = tuple(
        ShardRef(**{name: getattr(part, name) for name in ShardRef.model_fields}) for part in parts
    )
    sharded = whole.model_copy(update={"shards": shards})
    options = {"fpir": 0.3, "scopes": ["region != 'region 1'"], "by": ["region"]}
    one, three = (calibrate(store, ref, **options) for ref in (whole, sharded))
    assert [row.model_dump(exclude={"threshold"}) for row in three.scopes] == [
        row.model_dump(exclude={"threshold"}) for row in one.scopes
    ]
    assert [row.threshold for row in three.scopes] == pytest.approx([row.threshold for row in one.scopes])


def test_an_item_without_a_label_is_enrolled_and_is_no_probe(tmp_path):
    vectors, labels, _ = people(regions=2)
    columns = {
        "id": [f"image {row}" for row in range(len(vectors))],
        "label": [f"person {label}" if label < 60 else None for label in labels],
    }
    store = str(tmp_path / "store")
    report = import_vectors(store, "faces", write_parquet(tmp_path, vectors, **columns))
    ref = build_index(store, "faces", report.embeddings, IndexConfig())
    (whole,) = calibrate(store, ref, fpir=0.5).scopes
    assert whole.identities == 60 + 60 * IMAGES
    assert (whole.checked.enrolled, whole.checked.identities, whole.checked.probes) == (60, 60, 60 * IMAGES)
    identifier = Identifier(open_index(ref), find_thresholds(store, ref))
    embedder = ref.embeddings.embedder.fingerprint
    (tried,) = identifier.identify(vectors[0], embedder=embedder).tried
    assert tried.threshold == whole.threshold


def test_a_new_version_without_labels_stays_unpublished_with_what_to_do(tmp_path):
    store, former = enrol(tmp_path)
    calibrate(store, former, fpir=0.3)
    vectors, _, _ = people(seed=1)
    ids = [f"image {row}" for row in range(len(vectors))]
    report = import_vectors(store, "faces", write_parquet(tmp_path, vectors, id=ids))
    new = build_index(store, "faces", report.embeddings, IndexConfig())
    with pytest.raises(IncompatibleArtifact) as refused:
        calibrate_alike(store, new)
    assert f"{former} stays in use" in str(refused.value)
    assert "dml rm thresholds faces, then index again." in str(refused.value)


def enrol_again(store, folder, index="faces", **options):
    """The next version of the index, of other people, unpublished."""
    vectors, labels, regions = people(**options)
    columns = {
        "id": [f"image {row}" for row in range(len(vectors))],
        "region": [f"region {region}" for region in regions],
        "label": [f"person {label}" for label in labels],
    }
    table = import_vectors(store, index, write_parquet(folder, vectors, **columns)).embeddings
    return build_index(store, index, table, IndexConfig())


def test_a_new_version_that_promises_nothing_stays_unpublished_with_what_is_needed(tmp_path):
    store, former = enrol(tmp_path, regions=2)
    assert calibrate(store, former, fpir=0.2, by=["region"]).num_promised == 3
    new = enrol_again(store, tmp_path, regions=2, per_region=4)
    for _ in range(2):  # a second try is refused alike
        with pytest.raises(IncompatibleArtifact) as refused:
            calibrate_alike(store, new)
        said = str(refused.value)
        assert f"{former} identifies with calibrated thresholds, and the new {new} cannot: the whole" in said
        assert re.search(
            r"needs 10 pairs of different identities beyond the threshold; it has \d, of 8", said
        )
        assert f"{former} stays in use. To go on without thresholds: dml rm thresholds faces" in said


def test_of_a_version_that_replaces_what_is_forgotten_it_is_said_that_it_does(tmp_path):
    store, former = enrol(tmp_path, regions=2)
    calibrate(store, former, fpir=0.2, by=["region"])
    new = enrol_again(store, tmp_path, regions=2, per_region=4)
    with pytest.raises(IncompatibleArtifact) as refused:
        calibrate_alike(store, new, former_must_go=True)
    said = str(refused.value)
    assert "stays in use" not in said
    assert said.endswith(f"{new} replaces it, and searches go on. To identify again: dml calibrate faces.")


def test_a_new_version_that_promises_a_part_goes_on_and_names_what_is_lost(tmp_path, caplog):
    store, former = enrol(tmp_path, regions=2)
    calibrate(store, former, fpir=0.4, scopes=["region = 'region 1'"])
    new = enrol_again(store, tmp_path, regions=1)
    report = calibrate_alike(store, new)
    assert [bool(scope.refused) for scope in report.scopes] == [False, True]
    assert "no thresholds for 1 of the 2 scopes that had one, as for region = 'region 1'" in caplog.text


def test_a_new_version_promises_nothing_as_the_one_in_use_did(tmp_path):
    store, former = enrol(tmp_path, regions=2, per_region=16)
    assert calibrate(store, former, fpir=0.0001).num_promised == 0
    new = enrol_again(store, tmp_path, regions=2, per_region=15)
    assert calibrate_alike(store, new).num_promised == 0


def test_thresholds_of_another_format_are_refused_with_the_command_that_makes_them_again(tmp_path):
    store, ref = enrol(tmp_path, regions=2, per_region=30)
    thresholds = calibrate(store, ref, fpir=0.3, scopes=["region = 'region 1'"], by=["device"]).thresholds
    manifest = storage.read_manifest(thresholds.uri)
    storage.write_manifest(thresholds.uri, {k: v for k, v in manifest.items() if k != "format"})
    with pytest.raises(
        IncompatibleArtifact, match=r"must have format 2 for this program; those of faces@.* have 1"
    ):
        find_thresholds(store, ref)
    with pytest.raises(
        IncompatibleArtifact, match=r"dml calibrate faces@.* --fpir 0.3 --scope .* --by device"
    ):
        find_thresholds(store, ref)


def test_one_identity_alone_is_refused(tmp_path):
    store, ref = enrol(tmp_path, regions=1, per_region=1)
    with pytest.raises(IncompatibleArtifact, match=r"has 1 label\(s\)"):
        calibrate(store, ref)


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """A store and its dataset."""
    store = str(tmp_path_factory.mktemp("glyphs") / "store")
    source = IngestConfig(name="glyphs", source="glyphs:classes=40,per_class=3", num_workers=1)
    return store, ingest(source, store)


def whole_gallery(store, dataset, package):
    ref = build_index(store, "glyphs", embed(store, package, dataset), IndexConfig())
    calibrate(store, ref, fpir=0.5)
    return find_thresholds(store, ref).scopes[0]


def test_classes_that_were_trained_on_are_enrolled_and_are_no_probes(glyphs):
    store, dataset = glyphs
    package = make_package(store).model_copy(update={"dataset": dataset})
    whole = whole_gallery(store, dataset, package)
    assert (whole.identities, whole.tail.identities) == (40, dataset.splits["test"].classes)
    assert whole.tail.probes == dataset.splits["test"].rows < dataset.rows


def test_all_classes_are_probes_of_a_network_that_was_trained_on_none_of_them(glyphs):
    store, dataset = glyphs
    whole = whole_gallery(store, dataset, make_package(store, seed=4))
    assert (whole.tail.identities, whole.tail.probes) == (40, dataset.rows)
