"""A bench's configuration becomes cells, or is refused before anything runs."""

import json
from pathlib import Path

import pytest

from dml.bench.cell import RAW_PIXELS, concurrency_of
from dml.bench.grid import plan
from dml.bench.pairs import cells_named, pairs_of
from dml.bench.reproduce import REPRODUCTIONS, reproduction
from dml.config import BenchConfig, ClassSplit, IngestConfig, parse_bench
from dml.data.ingest import ingest
from dml.errors import (
    CorruptArtifact,
    IncompatibleArtifact,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
)
from dml.models.backbones import require_weights
from dml.presets import experiment
from tests.bench.parts import as_published


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two datasets, and one that has no test split."""
    root = str(tmp_path_factory.mktemp("grid") / "store")
    for name, fraction in (("shop", 0.5), ("other", 0.4), ("whole", 0.0)):
        split = ClassSplit(test_fraction=fraction)
        source = "glyphs:classes=20,per_class=2"
        ingest(IngestConfig(name=name, source=source, split=split, num_workers=1), root)
    return root


def bench(**changes: object) -> BenchConfig:
    return parse_bench({"datasets": ["shop"], "losses": ["margin"], "seeds": 2, **changes})


def rows_of(cells):
    return list(dict.fromkeys((c.row.dataset.name, c.row.preset, c.row.name) for c in cells))


def test_rows_are_datasets_times_losses_times_the_minings_they_take(store):
    config = bench(
        datasets=["shop", "other"],
        losses=["margin", "n_pair", "triplet_margin/all"],
        minings=["random", "semi_hard"],
    )
    cells = plan(config, store)
    names = ["raw pixels", "softmax", "margin/random", "margin/semi_hard", "n_pair", "triplet_margin/all"]
    assert rows_of(cells) == [(dataset, "smoke", name) for dataset in ("shop", "other") for name in names]
    assert [c.seed for c in cells if c.row.name == "n_pair"] == [0, 1, 0, 1]
    assert [c.seed for c in cells if c.row.name == RAW_PIXELS] == [0, 0], "pixels know no chance"
    assert len({c.fingerprint for c in cells}) == len(cells)


def test_without_losses_every_preset_is_a_row_as_it_is(store):
    cells = plan(bench(losses=[], presets=["smoke", "smoke:cub200-margin-distance"], baselines=[]), store)
    assert rows_of(cells) == [
        ("shop", "smoke", "multi_similarity"),
        ("shop", "smoke:cub200-margin-distance", "margin/distance_weighted"),
    ]
    assert cells[-1].experiment.loss == experiment("cub200-margin-distance").loss


def test_a_dataset_can_have_its_own_preset(store):
    config = bench(
        datasets=["shop", "other"],
        presets=["smoke", "other=glyphs"],
        settings=["other:sampler.classes_per_batch=8"],
        baselines=[],
    )
    assert rows_of(plan(config, store)) == [
        ("shop", "smoke", "margin/distance_weighted"),
        ("other", "glyphs", "margin/distance_weighted"),
    ]


def test_settings_reach_all_rows_or_those_they_name(store):
    config = bench(
        datasets=["shop", "other"],
        losses=["margin", "triplet_margin"],
        settings=[
            "training.num_steps=3",
            "other:training.num_steps=4",
            "margin:loss.beta=0.9",
            "shop:evaluation.recall_at=[1]",
        ],
        baselines=[],
    )
    cells = plan(config, store)
    steps = {(c.row.dataset.name, c.row.loss): c.experiment.training.num_steps for c in cells}
    assert {key[0]: steps[key] for key in steps} == {"shop": 3, "other": 4}
    assert {c.experiment.loss.beta for c in cells if c.row.loss == "margin"} == {0.9}
    assert {c.experiment.evaluation.recall_at for c in cells if c.row.dataset.name == "shop"} == {(1,)}


def test_the_same_cell_in_another_grid_has_the_same_fingerprint_and_other_judging_another(store):
    def of_margin(**changes):
        return [c.fingerprint for c in plan(bench(baselines=[], **changes), store) if c.row.loss == "margin"]

    assert of_margin() == of_margin(losses=["triplet_margin", "margin"])
    assert of_margin() == of_margin(settings=["training.log_every_steps=7", "evaluation.baselines=false"])
    assert not set(of_margin()) & set(of_margin(settings=["evaluation.recall_at=[1,3]"]))
    assert not set(of_margin()) & set(of_margin(settings=["training.num_steps=31"]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"losses": ["margn"]}, "A loss must be one of .*; got 'margn'"),
        ({"losses": ["margin/hard"]}, "mining must be one of .*; got 'margin/hard'"),
        (
            {"losses": ["proxy_anchor/semi_hard"]},
            "proxy_anchor loss takes no mining.*contrastive, margin, triplet_margin",
        ),
        ({"losses": ["proxy_anchor"], "minings": ["semi_hard"]}, "None of the losses .* takes a mining"),
        (
            {"losses": ["triplet_margin"], "settings": ["triplet_margin:loss.margin=null"]},
            "margin must be a number",
        ),
        ({"settings": ["loss.beta=1"]}, "The softmax loss cannot start .*beta.*written --set LOSS:path"),
        ({"losses": ["n_pair"], "settings": ["sampler.samples_per_class=1"]}, "at least 2"),
        ({"presets": ["smok"]}, "preset must be one of"),
        ({"presets": ["smoke", "glyphs"]}, "starts from one preset"),
        ({"presets": ["other=smoke"]}, "for a dataset of this bench"),
        ({"settings": ["seed=3"]}, "seed is the grid's to set"),
        ({"settings": ["loss.mining=random"]}, "loss.mining is the grid's to set"),
        ({"settings": ["elsewhere:training.num_steps=3"]}, "needs a dataset of this bench"),
        ({"settings": ["margin:evaluation.nmi=false"]}, "judged alike"),
        ({"settings": ["training.num_step=3"]}, "num_step"),
        ({"compare": [["margin", "triplet_margin"]]}, "names 0"),
        ({"compare": [["margin", "raw pixels"]]}, "names 0"),
        ({"compare": [["margin", "margin"]]}, "two different cells of one dataset; 'margin' and 'margin'"),
        ({"compare": [["margin", "softmax"]], "compare_metric": "nmi"}, "number of every query.*got .*'nmi'"),
        (
            {"losses": ["margin/all", "margin/random"], "compare": [["margin", "softmax"]]},
            "'margin', which names 2",
        ),
        ({"datasets": ["shop", "shop@1"]}, "named once"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_nothing_runs(store, changes, says):
    before = sorted(Path(store).rglob("*"))
    with pytest.raises(InvalidSetting, match=says):
        plan(bench(**changes), store)
    assert sorted(Path(store).rglob("*")) == before


def test_a_mining_that_does_not_exist_is_refused_by_its_name():
    with pytest.raises(InvalidSetting, match=r"minings\.0 must be .*'semi-hrad'.*mean 'semi_hard'"):
        bench(minings=["semi-hrad"])


def test_datasets_that_are_missing_or_cannot_be_evaluated_are_refused(store):
    with pytest.raises(MissingArtifact, match="nowhere"):
        plan(bench(datasets=["shop", "nowhere"]), store)
    with pytest.raises(InvalidData, match="split train and judges on test"):
        plan(bench(datasets=["whole"]), store)
    with pytest.raises(InvalidData, match=r"--set shop:sampler.classes_per_batch=10"):
        plan(bench(settings=["sampler.classes_per_batch=11"]), store)


def test_a_row_is_named_by_its_loss_where_that_is_enough(store):
    cells = plan(bench(losses=["margin/all", "margin/random", "triplet_margin"]), store)
    assert [c.row.name for c in cells_named(cells, "triplet_margin")] == ["triplet_margin/semi_hard"] * 2
    assert [(c.row.mining, c.seed) for c in cells_named(cells, "margin/all@1")] == [("all", 1)]
    presets = plan(bench(losses=[], presets=["smoke", "smoke:sop-multi-similarity"]), store)
    (one, two) = cells_named(presets, "smoke:sop-multi-similarity")
    assert {one.row.preset, two.row.preset} == {"smoke:sop-multi-similarity"}, "its loss names two rows"


def test_cells_are_paired_seed_by_seed_and_never_with_themselves(store):
    def paired(*compare):
        config = bench(
            losses=["margin", "triplet_margin"], datasets=["shop", "other"], compare=compare, seeds=3
        )
        return [
            (pair.first.row.dataset.name, *pair.names)
            for pair in pairs_of(config, plan(config, store))
            if pair.first.row.dataset == pair.second.row.dataset
        ]

    margin, triplet = "margin/distance_weighted", "triplet_margin/semi_hard"
    assert paired(["triplet_margin", "margin"]) == [
        (name, f"{triplet}@{seed}", f"{margin}@{seed}") for name in ("shop", "other") for seed in range(3)
    ]
    assert paired(["margin", "margin@0"]) == [
        (name, f"{margin}@{seed}", f"{margin}@0") for name in ("shop", "other") for seed in (1, 2)
    ]


def test_rows_of_one_name_are_distinguished_by_their_presets(store):
    presets = ["smoke", "smoke:sop-multi-similarity"]
    config = bench(losses=[], presets=presets, compare=[presets], seeds=1, baselines=[])
    (pair,) = pairs_of(config, plan(config, store))
    assert pair.names == tuple(f"{preset} multi_similarity@0" for preset in presets)


def test_cells_that_spread_over_workers_go_one_at_a_time(store):
    cells = plan(bench(settings=["training.num_workers=2"]), store)
    with concurrency_of(bench(), cells) as count:
        assert count == 1
    with (
        pytest.raises(InvalidSetting, match="go one at a time; got parallel 2"),
        concurrency_of(bench(parallel=2), cells),
    ):
        pass


# --- a published table ----------------------------------------------------------------------------------


def test_a_published_table_needs_its_dataset(store, tmp_path, no_network):
    config = reproduction("confusezius-cub200", {"seeds": 1})
    with pytest.raises(MissingArtifact, match="dml ingest FOLDER --name cub200"):
        plan(config, store)
    other = reproduction("confusezius-cub200", {"datasets": ["shop"]})
    with pytest.raises(
        IncompatibleArtifact, match="train has 20 images of 10 classes, published 5864 of 100"
    ):
        plan(other, store)
    shrunk = str(tmp_path / "store")
    as_published(shrunk, tmp_path / "images", "cub200", size=(96, 120))
    with pytest.raises(IncompatibleArtifact, match="at most 96 pixels"):
        plan(config, shrunk)


def test_a_published_table_needs_its_weights(tmp_path, no_network):
    store = str(tmp_path / "store")
    as_published(store, tmp_path / "images", "cub200")
    config = reproduction("confusezius-cub200", {"seeds": 1})
    with pytest.raises(
        MissingArtifact, match=r"weights .*IMAGENET1K_V1 of torchvision:\w+ must be on this machine"
    ):
        plan(config, store)
    changed = reproduction("confusezius-cub200", {"settings": ["encoder.backbone.pretrained=IMAGENET1K_V2"]})
    with pytest.raises(IncompatibleArtifact, match="pretrained=IMAGENET1K_V2"):
        plan(changed, store)


def test_a_file_in_the_hubs_cache_that_is_another_is_noticed(tmp_path, no_network):
    cached = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    with pytest.raises(CorruptArtifact, match="must have a SHA-256 that begins with 0676ba61"):
        require_weights(experiment("cub200-margin-distance").encoder.backbone)


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_published_tables_rows_are_the_presets_of_that_publication(name):
    config = reproduction(name, {"seeds": 5})
    dataset = name.removeprefix("confusezius-")
    assert config.datasets == (dataset,)
    assert all(preset.startswith(dataset) and experiment(preset) for preset in config.presets)
    few_classes = dataset in ("cub200", "cars196")
    assert len(config.presets) == (4 if few_classes else 3), "their Proxy-NCA needs few classes"
    assert config.seeds == 5


def test_a_published_table_says_itself_which_rows_it_has():
    with pytest.raises(InvalidSetting, match="says which rows it has; got losses"):
        reproduction("confusezius-sop", {"losses": ["margin"]})
    with pytest.raises(
        InvalidSetting, match="confusezius-cub200, confusezius-cars196, confusezius-sop, confusezius-in-shop"
    ):
        reproduction("confusezius-mnist", {})


def test_a_bench_survives_json():
    config = bench(compare=[["margin", "softmax"]], minings=["all"])
    assert parse_bench(json.loads(config.model_dump_json())) == config
