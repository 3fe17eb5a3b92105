"""prefect.yaml says what Prefect will read: Prefect itself ignores the keys it does not know."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dml.config import ExperimentConfig
from dml.presets import experiment, names
from flows.train import train_flow

FILE = Path(__file__).parents[2] / "prefect.yaml"
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["deployments"]


def unknown_keys(content: Any, model: type[BaseModel], where: str = "") -> list[str]:
    """The keys of a tree that its model has no field for."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    unknown = [f"{where}{key}" for key in content if key not in fields]
    for key, value in content.items():
        inner = _model_inside(fields[key].annotation) if key in fields else None
        for item in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(item, dict):
                unknown += unknown_keys(item, inner, f"{where}{key}.")
    return unknown


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The first model in a (nested) optional, union or list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    candidates = (_model_inside(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in candidates if model is not None), None)


def test_every_key_is_one_that_prefect_reads():
    from prefect.cli.deploy._models import PrefectYamlModel

    content = yaml.safe_load(FILE.read_text())
    PrefectYamlModel.model_validate(content)
    del content["definitions"]  # YAML anchors
    assert unknown_keys(content, PrefectYamlModel) == []


def test_a_misspelled_key_would_be_found():
    from prefect.cli.deploy._models import PrefectYamlModel

    content = {"deployments": [{"name": "default", "work_pol": {}, "work_pool": {"nam": "x"}}]}
    assert unknown_keys(content, PrefectYamlModel) == ["deployments.work_pol", "deployments.work_pool.nam"]


def test_every_flow_is_deployed_once_as_default_in_the_local_pool():
    files = {path.stem for path in (FILE.parent / "flows").glob("*.py")} - {
        "__init__",
        "gate",
        "policy",
        "plugin",
        "schedules",
    }
    assert sorted(d["entrypoint"] for d in DEPLOYMENTS) == sorted(f"flows/{f}.py:{f}_flow" for f in files)
    assert {(d["name"], d["work_pool"]["name"]) for d in DEPLOYMENTS} == {("default", "local-process")}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"].split(":")[1])
def test_the_flow_has_the_parameters_that_its_deployment_gives(deployment: dict[str, Any]):
    path, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert flow.name == name.replace("_", "-")
    given = [deployment.get("parameters", {}), *(t["parameters"] for t in deployment.get("triggers", []))]
    for parameters in given:
        assert set(parameters) <= set(flow.parameters.properties)


def test_the_tutorial_of_a_cluster_names_every_flow():
    tutorial = (FILE.parent / "docs" / "tutorials" / "cluster.md").read_text()
    named = {d["entrypoint"].split(":")[1].replace("_", "-") for d in DEPLOYMENTS}
    assert {flow for flow in named if f"`{flow}`" not in tutorial} == set()


def test_no_default_names_what_only_some_stores_have():
    # The end-to-end flow makes its dataset, model and index itself.
    with_defaults = [d["entrypoint"] for d in DEPLOYMENTS if "parameters" in d]
    assert with_defaults == ["flows/end_to_end.py:end_to_end_flow"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"].split(":")[1])
def test_prefects_server_takes_the_parameters_by_their_schema(deployment: dict[str, Any]):
    # The server validates by JSON schema, which knows no default of a union: without `kind` several may fit.
    from prefect.utilities.schema_tools import validate

    path, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    schema = flow.parameters.model_dump_for_openapi()
    validate(
        deployment.get("parameters", {}), schema, raise_on_error=True, preprocess=True, ignore_required=True
    )


def test_end_to_end_is_deployed_with_the_preset_of_the_demo():
    (end_to_end,) = (d for d in DEPLOYMENTS if "end_to_end" in d["entrypoint"])
    assert ExperimentConfig.model_validate(end_to_end["parameters"]["experiment"]) == experiment("glyphs")


def test_the_page_offers_the_presets_as_a_list():
    preset = train_flow.parameters.model_dump_for_openapi()["properties"]["preset"]
    assert {"auto", *names(), "smoke:omniglot"} <= set(preset["enum"])
    assert preset["default"] == "auto"


def test_a_promotion_reindexes_and_the_store_alone_says_what_else_is_refreshed():
    (reindex,) = (d for d in DEPLOYMENTS if "reindex" in d["entrypoint"])
    assert [trigger["expect"] for trigger in reindex["triggers"]] == [["dml.model.promoted"]]
    assert not any("schedules" in d for d in DEPLOYMENTS)


def test_the_zombie_automation_is_one_that_prefect_takes():
    from prefect.events.schemas.automations import AutomationCore

    from dml.up import ZOMBIES

    (content,) = yaml.safe_load((FILE.parent / "infra/prefect/zombies.yaml").read_text())["automations"]
    automation = AutomationCore.model_validate(content)
    assert automation.name == ZOMBIES
    assert automation.trigger.within.total_seconds() == 540, "three heartbeats of 180 s"
    assert [action.type for action in automation.actions] == ["change-flow-run-state"]
