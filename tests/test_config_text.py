"""Settings from text and files: every field parses a text by its type, and misspellings are reported."""

import json
import os

import pytest

from dml.config import parse_bench, parse_experiment, read_experiment, to_yaml
from dml.errors import InvalidSetting
from dml.presets import experiment, names


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("name=2024", ["name"], "2024"),
        ("name=1.10", ["name"], "1.10"),
        ('name="0x1F"', ["name"], "0x1F"),
        ("name=true", ["name"], "true"),
        ("optimizer.learning_rate=1e-5", ["optimizer", "learning_rate"], 1e-5),
        ("optimizer.learning_rate= .5", ["optimizer", "learning_rate"], 0.5),
        ("training.num_steps=1e3", ["training", "num_steps"], 1000),
        ("training.ema_decay=null", ["training", "ema_decay"], None),
        ("training.compile=True", ["training", "compile"], True),
        ("evaluation.recall_at=1,10", ["evaluation", "recall_at"], (1, 10)),
        ("evaluation.recall_at=[1, 10]", ["evaluation", "recall_at"], (1, 10)),
        ("evaluation.slices=2024,true", ["evaluation", "slices"], ("2024", "true")),
        ("augmentation.scaling=0.9,1.1", ["augmentation", "scaling"], (0.9, 1.1)),
        ("evaluation.role_attribute=2024", ["evaluation", "role_attribute"], "2024"),
        ("evaluation.role_attribute=null", ["evaluation", "role_attribute"], None),
        ('loss={"kind": "margin", "nu": 0.5}', ["loss", "nu"], 0.5),
    ],
)
def test_a_text_is_parsed_by_the_type_of_its_field(assignment, path, value):
    setting = experiment("smoke").overridden([assignment])
    for name in path:
        setting = getattr(setting, name)
    assert setting == value
    assert type(setting) is type(value)


def test_another_kind_replaces_its_section_by_that_kinds_defaults():
    triplet = experiment("smoke").overridden(["loss.kind=triplet_margin", "loss.margin=0.7"])
    margin = triplet.overridden(["loss.kind=margin"])
    assert margin.loss == experiment("smoke").overridden(['loss={"kind": "margin"}']).loss
    same = triplet.overridden(["loss.kind=triplet_margin"])
    assert same.loss.margin == 0.7, "the kind it already has changes nothing"
    network = experiment("cars196-squeezenet").overridden(["encoder.backbone.kind=timm"])
    assert network.encoder.backbone.name == "resnet50"


def test_the_kind_is_assigned_first_in_any_order():
    settings = [
        "sampler.attribute=camera",
        "loss.margin=0.3",
        "loss.kind=triplet_margin",
        "sampler.kind=attribute",
    ]
    assert experiment("smoke").overridden(settings) == experiment("smoke").overridden(settings[::-1])


def test_the_last_of_two_values_of_a_setting_counts():
    assert experiment("smoke").overridden(["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("loss.bse=1", r"loss\.bse is not a setting of kind 'multi_similarity'\. Did you mean 'base'\?"),
        (
            "loss.margin=1",
            r"Kinds that have it: arcface, .* The settings are kind, alpha, beta, base, epsilon\.",
        ),
        ("num_steps=3", r"Did you mean 'training\.num_steps'"),
        ("trainin.num_steps=3", r"trainin is not a setting\. Did you mean 'training'"),
        (
            "loss.kind=tripplet_margin",
            r"loss\.kind must be one of .*got 'tripplet_margin'\. Did you mean 'triplet_margin'",
        ),
        (
            "training.precision=bfloat",
            r"training\.precision must be one of .*mean 'bfloat16'",
        ),
        ("encoder.pooling=Gem", r"encoder\.pooling must be one of .*mean 'gem'"),
        ("loss=margin", r"loss is a section of settings.*such as loss\.kind="),
        ("name.x=1", "'name' has no settings"),
        ("=3", r"path\.to\.key=value"),
        ("training..num_steps=3", r"path\.to\.key=value"),
        ("name=a b", r"name must match \^.*got 'a b'"),
        ("evaluation.recall_at=", r"recall_at must have at least 1; got \[\]"),
        ("loss=" + "[" * 10_000, r"got '\[{100,200}\.\.\. \(10,002 characters\)"),
        ("gate.min_gain=NaN", "finite"),
        ("training.num_steps=true", r"num_steps must be a number; got true"),
        ("optimizer.clip_norm=false", r"clip_norm must be a number; got false"),
        ("preprocessing.std=[0]", r"std must be greater than 0.*got \(0\.0,\)"),
        ("seed=" + "9" * 5_000, r"seed .*exceeded maximum size; got.*5,002 characters"),
        ("gate.min_gain=5", "less than 1; got 5"),
        ("gate.at_least=95", "less than or equal to 1; got 95"),
        ("gate.at_least=-1", "greater than or equal to 0; got -1"),
        ("optimizer.learning_rate=fast", r"optimizer\.learning_rate should be a valid number"),
        ("sampler.kind=attribute", r"sampler\.attribute must be given"),
    ],
)
def test_an_invalid_assignment_is_reported_with_the_nearest_name(assignment, message):
    with pytest.raises(InvalidSetting, match=message):
        experiment("smoke").overridden([assignment])


def test_every_invalid_setting_is_reported():
    with pytest.raises(InvalidSetting, match=r"seed .*\| loss\.margn.*\| training\.num_steps"):
        parse_experiment(
            {
                "name": "x",
                "seed": -1,
                "training": {"num_steps": 0},
                "loss": {"kind": "triplet_margin", "margn": 1},
            }
        )


@pytest.mark.parametrize(
    ("loss", "message"),
    [("tripplet_margin", "mean 'triplet_margin'"), ("margin/semihard", "mean 'semi_hard'")],
)
def test_a_misspelt_loss_or_mining_of_a_bench_is_reported_with_the_nearest(loss, message):
    with pytest.raises(InvalidSetting, match=message):
        parse_bench({"datasets": ["x"], "losses": [loss]}).rows()


def test_a_misspelt_preset_is_reported_with_the_nearest():
    with pytest.raises(InvalidSetting, match="mean 'omniglot'"):
        experiment("omnglot")


@pytest.mark.parametrize("name", [*names(), "smoke:cub200-proxy-nca"])
@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_a_preset_written_to_a_file_is_read_back_unchanged(name, ending, tmp_path):
    config = experiment(name)
    text = config.model_dump_json() if ending == ".json" else to_yaml(config)
    (tmp_path / f"experiment{ending}").write_text(text)
    assert read_experiment(tmp_path / f"experiment{ending}") == config


def test_plain_words_of_a_yaml_file_are_parsed_by_the_types_of_their_fields(tmp_path):
    text = """
name: 2024          # a text, whatever YAML says
optimizer:
  learning_rate: 1e-3
  schedule: cosine
  head_learning_rate: ~
training: {num_steps: 1e3, compile: false, ema_decay: null}
evaluation:
  recall_at: [1, 10]
  slices: [no, 0123, 2024-01-01]
  role_attribute: off
loss: {kind: margin, nu: .5}
"""
    (tmp_path / "x.yaml").write_text(text)
    config = read_experiment(tmp_path / "x.yaml")
    assert (config.name, config.optimizer.learning_rate) == ("2024", 1e-3)
    assert (config.training.num_steps, config.training.compile, config.training.ema_decay) == (
        1000,
        False,
        None,
    )
    assert config.evaluation.slices == ("no", "0123", "2024-01-01")
    assert (config.evaluation.role_attribute, config.evaluation.recall_at) == ("off", (1, 10))
    assert (config.loss.kind, config.loss.nu) == ("margin", 0.5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.yaml", b"name: x\nseed: 1\nseed: 2\n", "'seed' again"),
        ("x.json", b'{"name": "x", "seed": 1, "seed": 2}', "'seed' again"),
        ("x.yaml", b"name: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("x.yaml", b"name: &a x\nencoder: *a\n", "alias"),
        ("x.yaml", b"name: x\n---\nname: y\n", "single document"),
        ("x.yaml", b"name: [x\n", "line 2"),
        ("x.yaml", b"\xff\xfe\xff", "YAML or JSON"),
        ("x.yaml", b"", "must be names with values"),
        ("x.yaml", b"- name\n", "must be names with values"),
        ("x.json", b"[" * 100_000, "YAML or JSON"),
        ("x.json", b"{", "line 1"),
        ("x.yaml", b"nme: x\n", "nme is not a setting.*mean 'name'"),
        ("x.yaml", b"name: x\n[a, b]: 1\n", "setting's name was expected.*line 2"),
        ("x.yaml", b"#" * (1 << 20) + b"\nname: x\n", "more than 1048576 bytes"),
        ("missing.yaml", None, "No such file"),
    ],
    ids=lambda value: value[:12].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_an_invalid_file_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSetting, match=message):
        read_experiment(tmp_path / name)


def test_json_in_a_yaml_file_is_yaml(tmp_path):
    config = experiment("smoke")
    (tmp_path / "x.yaml").write_text(json.dumps(json.loads(config.model_dump_json()), indent=1))
    assert read_experiment(tmp_path / "x.yaml") == config


def test_only_the_invalid_values_of_a_list_are_reported():
    with pytest.raises(InvalidSetting) as refused:
        experiment("smoke").overridden(["evaluation.recall_at=0"])
    assert str(refused.value).endswith("evaluation.recall_at.0 should be greater than or equal to 1; got 0")


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.yaml")
    for path in (tmp_path / "x.yaml", "/dev/zero"):
        with pytest.raises(InvalidSetting, match="a pipe or a device is not read"):
            read_experiment(path)
