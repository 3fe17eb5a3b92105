"""The configuration refuses what cannot be followed, before anything starts."""

import json

import pytest
from pydantic import ValidationError

from dml.config import (
    EncoderConfig,
    EvaluationConfig,
    ExperimentConfig,
    PreprocessingConfig,
    ProxyAnchorConfig,
    SamplerConfig,
    ShuffledSamplerConfig,
    TimmConfig,
    TrainingConfig,
    parse_experiment,
    parse_ingest,
    read_experiment,
)
from dml.errors import InvalidSetting
from dml.presets import experiment, names


@pytest.mark.parametrize("name", names())
def test_every_preset_is_valid_and_survives_json(name):
    config = experiment(name)
    assert parse_experiment(json.loads(config.model_dump_json())) == config


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(InvalidSetting, match="smoke"):
        experiment("no-such")


def test_a_misspelled_key_is_refused_by_name():
    with pytest.raises(InvalidSetting, match=r"loss\.triplet\.margn"):
        parse_experiment({"name": "x", "loss": {"kind": "triplet", "margn": 0.2}})


def test_a_setting_is_replaced_by_its_path_and_the_original_stays():
    config = experiment("smoke")
    changed = config.overridden(
        ["training.num_steps=7", 'loss={"kind":"triplet","mining":"batch-hard","margin":null}']
    )
    assert (changed.training.num_steps, changed.loss.kind) == (7, "triplet")
    assert changed.loss.margin is None
    assert config.training.num_steps == 30


def test_a_part_that_is_off_is_turned_on_by_a_setting_of_it():
    config = EvaluationConfig().overridden(["few_shot.ways=5", "recall_at=[1,10]", "bootstrap.by=query"])
    assert config.few_shot.ways == 5
    assert config.recall_at == (1, 10)
    assert (config.bootstrap.by, config.bootstrap.resamples) == ("query", 1000)
    with pytest.raises(InvalidSetting, match="few_shot"):
        EvaluationConfig().overridden(["few_shot.way=5"])


def test_confidence_needs_a_number_of_every_query():
    tree = {"name": "x", "gate": {"metric": "nmi", "confidence": 0.95}}
    with pytest.raises(InvalidSetting, match="query by query"):
        parse_experiment(tree)


@pytest.mark.parametrize("assignment", ["training.num_steps", "training.num_step=3", "name.x=1"])
def test_an_assignment_that_names_no_setting_is_refused(assignment):
    with pytest.raises(InvalidSetting):
        experiment("smoke").overridden([assignment])


def test_workers_that_cannot_share_the_classes_are_refused():
    with pytest.raises(ValidationError, match="Nearest below: 6"):
        ExperimentConfig(
            name="x",
            sampler=SamplerConfig(classes_per_batch=8),
            training=TrainingConfig(num_workers=3),
        )


def test_workers_that_share_the_images_of_a_batch_but_not_its_classes_are_allowed():
    sampler = SamplerConfig(classes_per_batch=7, samples_per_class=4)
    assert ExperimentConfig(name="x", sampler=sampler, training=TrainingConfig(num_workers=4))
    with pytest.raises(ValidationError, match=r"multiple of 2 for 8 workers; got 7\. Nearest below: 6"):
        ExperimentConfig(name="x", sampler=sampler, training=TrainingConfig(num_workers=8))
    shuffled = ShuffledSamplerConfig(batch_size=64)
    with pytest.raises(ValidationError, match="batch_size must be a multiple of 3"):
        ExperimentConfig(
            name="x", sampler=shuffled, loss=ProxyAnchorConfig(), training=TrainingConfig(num_workers=3)
        )


def test_pair_losses_need_pairs():
    with pytest.raises(ValidationError, match="at least 2"):
        ExperimentConfig(name="x", sampler=SamplerConfig(samples_per_class=1))


def test_pair_losses_refuse_shuffled_batches_and_proxy_losses_take_them():
    tree = {"name": "x", "sampler": {"kind": "shuffled", "batch_size": 180}}
    with pytest.raises(
        InvalidSetting, match=r"triplet loss learns from pairs.*Take kind 'pk', or a proxy loss"
    ):
        parse_experiment({**tree, "loss": {"kind": "triplet"}})
    assert parse_experiment({**tree, "loss": {"kind": "proxy-anchor"}}).sampler.batch_size == 180


def test_a_sampler_of_no_kind_is_p_x_k_as_it_was():
    tree = {"name": "x", "sampler": {"classes_per_batch": 6, "samples_per_class": 3}}
    assert parse_experiment(tree).sampler == SamplerConfig(classes_per_batch=6, samples_per_class=3)


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "pk", "classes_per_batch": 6},
        {"kind": "attribute", "attribute": "camera", "several_values": "split"},
        {"kind": "similar", "seeds_per_batch": 7, "refresh_every_steps": 50},
    ],
    ids=lambda sampler: sampler["kind"],
)
def test_every_kind_of_sampler_survives_json(sampler):
    config = parse_experiment({"name": "x", "sampler": sampler})
    assert config.sampler.kind == sampler["kind"]
    assert parse_experiment(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"kind": "attribute"}, r"sampler\.attribute\.attribute: Field required"),
        ({"kind": "similar", "seeds_per_batch": 3}, "multiple of seeds_per_batch; got 28 and 3"),
        ({"kind": "shuffled", "classes_per_batch": 4}, "classes_per_batch: Extra inputs"),
        ({"kind": "sorted"}, "'pk', 'attribute', 'similar', 'shuffled'"),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else "",
)
def test_a_sampler_that_cannot_be_followed_is_refused(sampler, message):
    with pytest.raises(InvalidSetting, match=message):
        parse_experiment({"name": "x", "sampler": sampler})


def test_a_grey_image_for_a_colour_backbone_is_refused():
    grey = PreprocessingConfig(color="L", mean=(0.5,), std=(0.5,))
    with pytest.raises(ValidationError, match="RGB"):
        ExperimentConfig(name="x", preprocessing=grey, encoder=EncoderConfig(backbone=TimmConfig()))


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValidationError, match="must not exceed"):
        PreprocessingConfig(resize=100, crop=224)


def test_an_unreadable_experiment_file_is_the_users_mistake(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for path in (tmp_path / "broken.json", tmp_path / "missing.json"):
        with pytest.raises(InvalidSetting, match="readable JSON"):
            read_experiment(path)


def test_a_dataset_name_that_is_no_folder_name_is_refused():
    with pytest.raises(InvalidSetting, match="name"):
        parse_ingest({"name": "../x", "source": "y"})
