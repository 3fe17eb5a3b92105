"""Invalid configurations are refused before anything starts."""

import json
import re

import pytest
from pydantic import ValidationError

from dml.config import (
    EncoderConfig,
    EvaluationConfig,
    ExperimentConfig,
    PreprocessingConfig,
    SamplerConfig,
    ShuffledSamplerConfig,
    TimmConfig,
    TrainingConfig,
    loss_config,
    parse_experiment,
    parse_ingest,
    read_experiment,
)
from dml.errors import InvalidSetting
from dml.presets import circle, experiment, names, smoke_of


@pytest.mark.parametrize("name", names())
def test_every_preset_is_valid_and_survives_json(name):
    config = experiment(name)
    assert parse_experiment(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("name", names())
def test_the_small_variant_of_every_preset_keeps_its_loss(name):
    whole, small = experiment(name), experiment(f"smoke:{name}")
    assert small.loss == whole.loss
    assert small.training.num_steps == 30
    assert small.preprocessing.crop == 28
    assert (
        small.optimizer.model_copy(
            update={
                key: getattr(whole.optimizer, key)
                for key in ("warmup_steps", "freeze_backbone_steps", "milestones")
            }
        )
        == whole.optimizer
    )
    assert small.optimizer.freeze_backbone_steps < 30
    assert bool(small.optimizer.freeze_backbone_steps) == bool(whole.optimizer.freeze_backbone_steps)


def test_the_baselines_follow_the_published_schedule():
    config = experiment("cub200-proxy-nca")
    assert config.training.num_steps == 40 * 52, "40 epochs of 5,864 images in whole batches of 112"
    assert config.optimizer.milestones == (25 / 40,)
    assert (config.encoder.dim, config.sampler.batch_size, config.optimizer.gamma) == (128, 112, 0.3)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"schedule": "step"}, "at least one"),
        ({"milestones": [0.5]}, "The schedule 'step' needs at least one milestone"),
        ({"schedule": "step", "milestones": [0.7, 0.5]}, "ascend"),
        ({"schedule": "step", "milestones": [0.5, 20]}, "or all steps"),
        ({"schedule": "step", "milestones": [10.5]}, "whole"),
        ({"schedule": "step", "milestones": [5000]}, "before the last step"),
    ],
    ids=str,
)
def test_invalid_milestones_are_refused(settings, match):
    with pytest.raises(InvalidSetting, match=match):
        parse_experiment({"name": "x", "optimizer": settings})


def test_an_unknown_preset_is_reported_with_the_existing_ones():
    with pytest.raises(InvalidSetting, match="smoke"):
        experiment("no-such")


def test_a_misspelled_key_is_refused_with_the_nearest():
    with pytest.raises(
        InvalidSetting, match=r"loss\.margn is not a setting of kind 'triplet_margin'.*mean 'margin'"
    ):
        parse_experiment({"name": "x", "loss": {"kind": "triplet_margin", "margn": 0.2}})


def test_a_setting_is_replaced_by_its_path_in_a_copy():
    config = experiment("smoke")
    changed = config.overridden(
        ["training.num_steps=7", 'loss={"kind":"triplet_margin","mining":"batch_hard","margin":null}']
    )
    assert (changed.training.num_steps, changed.loss.kind) == (7, "triplet_margin")
    assert changed.loss.margin is None
    assert config.training.num_steps == 30


def test_a_setting_of_a_null_section_turns_the_section_on():
    config = EvaluationConfig().overridden(["few_shot.ways=5", "recall_at=[1,10]", "bootstrap.by=query"])
    assert config.few_shot.ways == 5
    assert config.recall_at == (1, 10)
    assert (config.bootstrap.by, config.bootstrap.resamples) == ("query", 1000)
    with pytest.raises(InvalidSetting, match="few_shot"):
        EvaluationConfig().overridden(["few_shot.way=5"])


def test_confidence_needs_a_metric_of_every_query():
    tree = {"name": "x", "gate": {"metric": "nmi", "confidence": 0.95}}
    with pytest.raises(InvalidSetting, match="query by query"):
        parse_experiment(tree)


@pytest.mark.parametrize("assignment", ["training.num_steps", "training.num_step=3", "name.x=1"])
def test_an_assignment_that_names_no_setting_is_refused(assignment):
    with pytest.raises(InvalidSetting):
        experiment("smoke").overridden([assignment])


def test_the_similar_sampler_refuses_sharded_proxies():
    settings = ["sampler.kind=similar", 'loss={"kind":"cosface","sharded":true}']
    with pytest.raises(InvalidSetting, match="sharded=false"):
        experiment("smoke").overridden(settings)


def test_workers_that_cannot_share_the_classes_are_refused():
    with pytest.raises(ValidationError, match="Nearest below: 6"):
        ExperimentConfig(
            name="x",
            sampler=SamplerConfig(classes_per_batch=8),
            training=TrainingConfig(num_workers=3),
        )


@pytest.mark.parametrize("sampler", [SamplerConfig(), ShuffledSamplerConfig()])
def test_the_suggested_value_for_too_many_workers_is_valid(sampler):
    training = TrainingConfig(num_workers=1000)
    with pytest.raises(ValidationError, match=r"Least: \d+, or take fewer workers") as refused:
        ExperimentConfig(name="x", sampler=sampler, loss=loss_config("proxy_anchor"), training=training)
    least = int(re.search(r"Least: (\d+)", str(refused.value))[1])
    size = "batch_size" if isinstance(sampler, ShuffledSamplerConfig) else "classes_per_batch"
    enough = sampler.model_copy(update={size: least})
    assert ExperimentConfig(name="x", sampler=enough, loss=loss_config("proxy_anchor"), training=training)


def test_too_many_steps_are_refused():
    with pytest.raises(ValidationError, match="less than or equal to 100000000"):
        TrainingConfig(num_steps=10**9)


def test_workers_that_share_the_images_of_a_batch_but_not_its_classes_are_allowed():
    sampler = SamplerConfig(classes_per_batch=7, samples_per_class=4)
    assert ExperimentConfig(name="x", sampler=sampler, training=TrainingConfig(num_workers=4))
    with pytest.raises(ValidationError, match=r"multiple of 2 for 8 workers; got 7\. Nearest below: 6"):
        ExperimentConfig(name="x", sampler=sampler, training=TrainingConfig(num_workers=8))
    shuffled = ShuffledSamplerConfig(batch_size=64)
    with pytest.raises(ValidationError, match="batch_size must be a multiple of 3"):
        ExperimentConfig(
            name="x",
            sampler=shuffled,
            loss=loss_config("proxy_anchor"),
            training=TrainingConfig(num_workers=3),
        )


def test_pair_losses_need_pairs():
    with pytest.raises(ValidationError, match="at least 2"):
        ExperimentConfig(name="x", sampler=SamplerConfig(samples_per_class=1))


def test_pair_losses_refuse_shuffled_batches_and_proxy_losses_take_them():
    tree = {"name": "x", "sampler": {"kind": "shuffled", "batch_size": 180}}
    with pytest.raises(InvalidSetting, match=r"triplet_margin loss learns .*Take kind 'pk', or a proxy loss"):
        parse_experiment({**tree, "loss": {"kind": "triplet_margin"}})
    assert parse_experiment({**tree, "loss": {"kind": "proxy_anchor"}}).sampler.batch_size == 180


def test_a_sampler_without_a_kind_is_p_x_k():
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
        ({"kind": "attribute"}, r"sampler\.attribute must be given"),
        ({"kind": "similar", "seeds_per_batch": 3}, "multiple of seeds_per_batch; got 28 and 3"),
        (
            {"kind": "shuffled", "classes_per_batch": 4},
            r"sampler\.classes_per_batch is not a setting of kind 'shuffled'.*pk, attribute, similar",
        ),
        (
            {"kind": "shufled"},
            r"sampler\.kind must be one of pk, attribute, similar, shuffled.*mean 'shuffled'",
        ),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else "",
)
def test_an_invalid_sampler_is_refused(sampler, message):
    with pytest.raises(InvalidSetting, match=message):
        parse_experiment({"name": "x", "sampler": sampler})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"chunk_rows": 16}, "conv4 has batch norms"),
        ({"ghost_batch_norm": True}, "must be a number"),
        ({"chunk_rows": 5, "ghost_batch_norm": True}, "must divide"),
        ({"chunk_rows": 32, "ghost_batch_norm": True, "num_workers": 2}, "share of 16"),
    ],
)
def test_chunks_that_would_change_batch_norm_are_refused(training, message):
    with pytest.raises(ValidationError, match=message):
        ExperimentConfig(
            name="x", sampler=SamplerConfig(classes_per_batch=8), training=TrainingConfig(**training)
        )


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "proxy_anchor"},
        {"kind": "n_pair"},
        {"kind": "lifted_structure"},
        {"kind": "triplet_margin", "mining": "n_pair"},
    ],
    ids=str,
)
def test_a_memory_around_a_loss_that_learns_within_the_batch_is_refused(loss):
    with pytest.raises(InvalidSetting, match="Set memory to null"):
        parse_experiment({"name": "x", "loss": loss, "memory": {"start_after": 10}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": None}, "None unless mining is semi_hard; got None"),
        ({"margin": 2.5, "squared": False}, r"in \(0, 2\] .* unless squared is False .*; got 2\.5"),
    ],
    ids=str,
)
def test_a_loss_refuses_in_a_configuration_what_its_constructor_refuses(settings, message):
    with pytest.raises(InvalidSetting, match=message):
        parse_experiment({"name": "x", "loss": {"kind": "triplet_margin", **settings}})


def test_a_memory_that_starts_after_the_last_step_is_refused():
    with pytest.raises(InvalidSetting, match="got 1000 and 1000"):
        parse_experiment({"name": "x", "memory": {}, "training": {"num_steps": 1000}})


def test_a_short_run_of_any_experiment_still_reaches_late_settings():
    late = {"memory": {"start_after": 999}, "optimizer": {"schedule": "step", "milestones": [999]}}
    small = smoke_of(parse_experiment({"name": "x", **late}))
    assert small.memory.start_after == small.optimizer.milestones[0] == small.training.num_steps - 1


def test_ami_without_nmi_is_refused():
    with pytest.raises(InvalidSetting, match="nmi must be on"):
        EvaluationConfig().overridden(["ami=true", "nmi=false"])


def test_a_batch_norm_cannot_be_both_frozen_and_ghost():
    with pytest.raises(ValidationError, match="got both"):
        ExperimentConfig(
            name="x",
            encoder=EncoderConfig(freeze_batch_norm=True),
            training=TrainingConfig(chunk_rows=4, ghost_batch_norm=True),
        )


def test_a_grey_image_for_a_colour_backbone_is_refused():
    grey = PreprocessingConfig(color="L", mean=(0.5,), std=(0.5,))
    with pytest.raises(ValidationError, match="RGB"):
        ExperimentConfig(name="x", preprocessing=grey, encoder=EncoderConfig(backbone=TimmConfig()))


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValidationError, match="must not exceed"):
        PreprocessingConfig(resize=100, crop=224)


@pytest.mark.parametrize(("side", "fits"), [(16, True), (15, False)])
def test_conv4_needs_an_image_of_sixteen_pixels(side, fits):
    def made() -> ExperimentConfig:
        return ExperimentConfig(name="x", preprocessing=PreprocessingConfig(resize=side, crop=side))

    if fits:
        assert made().preprocessing.crop == side
    else:
        with pytest.raises(ValidationError, match="crop must be at least 16; got 15"):
            made()


def test_an_unreadable_experiment_file_is_refused(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for path in (tmp_path / "broken.json", tmp_path / "missing.json"):
        with pytest.raises(InvalidSetting, match="readable YAML or JSON"):
            read_experiment(path)


def test_an_invalid_dataset_name_is_refused():
    with pytest.raises(InvalidSetting, match="name"):
        parse_ingest({"name": "../x", "source": "y"})


def test_mining_is_refused_for_a_loss_that_uses_all_pairs():
    with pytest.raises(InvalidSetting, match=r"sup_con loss weighs all pairs .* take contrastive"):
        experiment("smoke").overridden(['loss={"kind":"sup_con","mining":"semi_hard"}'])


@pytest.mark.parametrize("loss", ["softmax", "normalized_softmax", "cosface", "arcface", "soft_triple"])
def test_a_classification_loss_may_see_the_lengths_of_embeddings(loss):
    config = circle(loss).overridden(["encoder.unit_length=false"])
    assert not config.encoder.unit_length


@pytest.mark.parametrize("loss", ["proxy_anchor", "triplet_margin", "contrastive", "n_pair"])
def test_a_loss_that_is_no_classification_needs_unit_length(loss):
    with pytest.raises(InvalidSetting, match=f"got {loss}"):
        circle(loss).overridden(["encoder.unit_length=false"])


def test_a_classification_with_lengths_takes_no_memory():
    with pytest.raises(InvalidSetting, match="memory"):
        circle("softmax").overridden(["encoder.unit_length=false", "memory.size=64"])


def test_settings_of_a_start_without_a_model_say_how_to_name_it():
    with pytest.raises(
        InvalidSetting, match=r"initial .*got only lora. Name the model: dml train DATASET --from"
    ):
        experiment("smoke").overridden(["initial.lora.rank=4"])
