"""Published numbers stand beside ours only where data, weights and training are the same."""

import csv

import pytest

from dml import storage
from dml.bench.cell import Row, make_cell
from dml.bench.published import PUBLISHED, SIZES, data_differs, published_rows, why_not
from dml.bench.reproduce import reproduction
from dml.bench.table import command_of, write_table
from dml.config import BenchConfig
from dml.presets import experiment, names
from dml.refs import SplitSize
from dml.reports import CellReport, Evaluation, Measured
from tests.bench.parts import as_published


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    store = str(folder / "store")
    return {family: as_published(store, folder / family, family) for family in SIZES}


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.dataset} {row.name} {row.network}")
def test_a_row_is_comparable_with_its_own_preset_but_for_what_it_says_differs(row, datasets):
    if row.preset is None:
        config = experiment(f"{row.dataset}-proxy-anchor")
        reason = f"protocol: published with {row.network}, which no preset trains alike"
        assert why_not(row, datasets[row.dataset], config) == [reason]
        return
    config = experiment(row.preset)
    assert config.loss.kind == row.loss
    assert getattr(config.loss, "mining", None) == row.mining
    reasons = [] if row.differs is None else [f"protocol: {row.differs}"]
    assert why_not(row, datasets[row.dataset], config) == reasons
    assert f"{config.encoder.dim} dimensions" in row.network


def test_rows_name_presets_that_exist_and_shares_of_one():
    assert {row.preset for row in PUBLISHED} - {None} <= set(names())
    assert all(0 < value < 1 for row in PUBLISHED for value in row.metrics.values())
    assert len({(row.dataset, row.name, row.network, row.source) for row in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("training.num_steps=100", "protocol: training.num_steps is 100, there 2600"),
        ("loss.beta=0.6", "protocol: loss.beta is 0.6, there 1.2"),
        ('loss={"kind": "triplet_margin"}', "protocol: loss is triplet_margin, there margin"),
        ("preprocessing.crop=96", "protocol: preprocessing.crop is 96, there 224"),
        ("encoder.backbone.weights=some.safetensors", "weights: of the file some.safetensors"),
        ("encoder.backbone.pretrained=false", "weights: from chance"),
        ("encoder.backbone.pretrained=true", "weights: torchvision's pretrained=True"),
    ],
)
def test_one_change_that_decides_is_the_one_reason(setting, reason, datasets):
    row = next(row for row in PUBLISHED if row.preset == "cub200-margin-distance")
    config = experiment(row.preset).overridden([setting])
    (actual,) = why_not(row, datasets["cub200"], config)
    assert actual.startswith(reason)


@pytest.mark.parametrize("setting", ["seed=4", "name=mine", "training.num_workers=2", "evaluation.nmi=false"])
def test_what_decides_nothing_is_no_reason(setting, datasets):
    row = next(row for row in PUBLISHED if row.preset == "cub200-margin-distance")
    assert why_not(row, datasets["cub200"], experiment(row.preset).overridden([setting])) == []


def test_half_of_a_dataset_is_not_the_published_one(datasets):
    row = next(row for row in PUBLISHED if row.preset == "cars196-margin-distance")
    half = {"train": SplitSize(rows=4000, classes=49), "test": SplitSize(rows=4054, classes=49)}
    dataset = datasets["cars196"].model_copy(update={"splits": half})
    reasons = why_not(row, dataset, experiment(row.preset))
    assert reasons[0] == "data: train has 4000 images of 49 classes, published 8054 of 98"
    assert len(reasons) == 2


@pytest.mark.parametrize(("side", "reasons"), [(224, 0), (223, 1)])
def test_images_that_were_shrunk_below_the_crop_are_not_the_published_ones(tmp_path, side, reasons):
    dataset = as_published(str(tmp_path / "store"), tmp_path / "images", "cub200", size=(300, side))
    actual = data_differs(dataset, "cub200")
    assert len(actual) == reasons
    assert all("at most 223 pixels" in reason for reason in actual)


@pytest.mark.parametrize("dataset", SIZES)
def test_a_published_table_is_reproduced_at_its_own_ranks(dataset):
    ranks = {"sop": (1, 10, 100, 1000), "in-shop": (1, 10, 20, 30, 50)}.get(dataset, (1, 2, 4, 8))
    for preset in reproduction(f"confusezius-{dataset}", {}).presets:
        assert experiment(preset).evaluation.recall_at == ranks


def test_a_loss_has_the_rows_of_the_dataset_its_name_begins_with(datasets):
    dataset = datasets["cars196"].model_copy(update={"name": "cars196-half"})
    (actual,) = published_rows(dataset, "margin", "distance_weighted")
    assert actual.metrics["recall_at_1"] == 0.793
    assert published_rows(dataset, "margin", "random") == []
    assert published_rows(dataset.model_copy(update={"name": "birds"}), "margin", "distance_weighted") == []


def evaluation_of(values):
    return Evaluation(metrics={name: Measured(value=value) for name, value in values.items()})


def test_a_published_number_is_beside_the_measured_one_and_its_conditions_below(datasets, tmp_path):
    cells = []
    for preset in ("cub200-margin-distance", "cub200-n-pair"):
        config = experiment(preset)
        row = Row(
            dataset=datasets["cub200"],
            preset=preset,
            loss=config.loss.kind,
            mining=getattr(config.loss, "mining", None),
        )
        cells += [make_cell(row, config.overridden([f"seed={seed}"])) for seed in (0, 1)]
    numbers = dict.fromkeys(config.evaluation.metrics, 0.5)
    reports = [
        CellReport(
            fingerprint=cell.fingerprint,
            evaluation=evaluation_of({**numbers, "recall_at_1": 0.62 + 0.01 * cell.seed}),
            hardware="paper",
        )
        for cell in cells
    ]
    bench = BenchConfig(datasets=("cub200",), presets=("cub200-margin-distance", "cub200-n-pair"), seeds=2)
    table = write_table(str(tmp_path), bench, cells, reports, pages=[])

    margin, n_pair = next(iter(table.tables.values()))
    assert (margin["R@1"], margin["R@1 published"]) == ("62.50 ± 0.71", "63.4")
    assert (margin["NMI published"], margin["F1 published"]) == ("68.2", "38.7")
    assert "R@1 published" not in n_pair
    beside, apart = next(iter(table.notes.values()))
    assert "chosen by its Recall@1 on the test set; ours is the last step" in beside
    assert apart.endswith(
        "not comparable. protocol: inner products here are of unit vectors, theirs of vectors of any length."
    )
    page = storage.read_bytes(f"{table.uri}/table.md").decode()
    assert "| R@1 | R@1 published | R@2 |" in page
    assert beside in page
    assert apart in page
    records = list(csv.DictReader(storage.read_bytes(f"{table.uri}/table.csv").decode().splitlines()))
    assert [record["recall_at_1_published"] for record in records] == ["0.634", ""]
    assert float(records[0]["recall_at_1_mean"]) == pytest.approx(0.625)
    assert "unit vectors" in records[1]["not_comparable"]


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, "--seeds 3"),
        ({"compare": [["a", "b"]]}, "--seeds 3 --compare a b"),
        ({"compare": [["a", "b"]], "compare_metric": "map_at_r"}, "--compare a b --compare-metric map_at_r"),
        ({"compare_metric": "map_at_r"}, "--seeds 3"),
        ({"baselines": []}, "--seeds 3 --no-baselines"),
        ({"settings": ["name='a b'"]}, """--set 'name='"'"'a b'"'"'' --seeds 3"""),
    ],
)
def test_the_command_of_a_table_is_what_to_type_for_it(changes, end):
    command = command_of(BenchConfig.model_validate({"datasets": ["birds"], "losses": ["margin"], **changes}))
    assert command.startswith("dml bench --datasets birds --presets smoke --losses margin ")
    assert command.endswith(end)


def test_the_command_of_a_reproduced_table_names_neither_presets_nor_losses():
    command = command_of(reproduction("confusezius-cub200", {"seeds": 5}))
    assert command == "dml bench --reproduce confusezius-cub200 --datasets cub200 --seeds 5"
