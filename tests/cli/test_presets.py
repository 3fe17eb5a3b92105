"""`dml presets`, and an experiment's way through a file into `dml train`."""

import json

import pytest

from dml.config import read_experiment
from dml.presets import experiment, names


def test_presets_are_listed(dml):
    listed = dml("presets", "--json").json["presets"]
    assert {preset["name"]: preset["description"] for preset in listed} == names()
    assert "omniglot" in dml("presets").out


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["yaml", "json"])
def test_a_preset_that_is_shown_is_a_file_for_config(dml, tmp_path, options):
    file = tmp_path / ("x.json" if options else "x.yaml")
    file.write_text(dml("presets", "show", "smoke:cub200-proxy-nca", *options).out)
    assert read_experiment(file) == experiment("smoke:cub200-proxy-nca")


def test_a_preset_is_json_wherever_the_option_is(dml):
    assert dml("presets", "--json", "show", "smoke").json == dml("presets", "show", "smoke", "--json").json


def test_what_is_recommended_for_a_dataset_is_a_file_for_config_too(dml, tmp_path, store):
    words = ("presets", "recommend", "labels", "--store", store)
    (tmp_path / "x.yaml").write_text(dml(*words).out)
    assert (tmp_path / "x.yaml").read_text().startswith("# ")
    (tmp_path / "x.json").write_text(dml(*words, "--json").out)
    assert read_experiment(tmp_path / "x.yaml") == read_experiment(tmp_path / "x.json")


def test_an_unknown_preset_brings_the_nearest(dml):
    done = dml("presets", "show", "omniglott")
    assert done.status == 2
    assert "Did you mean 'omniglot'" in done.err


def test_a_config_beside_a_preset_is_refused(dml, tmp_path, store):
    (tmp_path / "x.json").write_text(json.dumps({"name": "x"}))
    done = dml("train", "labels", "--config", str(tmp_path / "x.json"), "--preset", "smoke", "--store", store)
    assert done.status == 2
    assert "Leave one out" in done.err
