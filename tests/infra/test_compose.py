"""compose.yaml against the part of the Compose Specification that it uses, and against its own promises."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILE = Path(__file__).parents[2] / "infra" / "compose.yaml"
STACK: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
BUILT_HERE = "dml-service:0.1.0"

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
SERVICE = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": TEXT,
        "build": {
            "type": "object",
            "required": ["context"],
            "additionalProperties": False,
            "properties": {"context": TEXT, "dockerfile": TEXT},
        },
        "command": TEXTS,
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "environment": {"type": "object", "additionalProperties": TEXT},
        "ports": TEXTS,
        "volumes": TEXTS,
        "stop_grace_period": DURATION,
        "healthcheck": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "test": {**TEXTS, "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}]},
                "interval": DURATION,
                "timeout": DURATION,
                "retries": {"type": "integer"},
                "disable": {"type": "boolean"},
            },
        },
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["condition"],
                "additionalProperties": False,
                "properties": {
                    "condition": {
                        "enum": ["service_started", "service_healthy", "service_completed_successfully"]
                    }
                },
            },
        },
    },
}
COMPOSE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "patternProperties": {"^x-": True},
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {"type": "object", "additionalProperties": SERVICE},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
}


def test_it_fits_the_schema():
    jsonschema.Draft202012Validator(COMPOSE).validate(STACK)


def test_a_service_waits_only_for_what_can_come():
    for service in SERVICES.values():
        for name, wait in service.get("depends_on", {}).items():
            other = SERVICES[name]
            if wait["condition"] == "service_healthy":
                assert "test" in other["healthcheck"]
            if wait["condition"] == "service_completed_successfully":
                assert other["restart"] in ("no", "on-failure"), f"{name} must be able to end"


def test_images_of_others_are_pinned():
    for service in SERVICES.values():
        if service["image"] != BUILT_HERE:
            assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]
        else:
            assert (FILE.parent / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_secrets_come_from_the_environment_alone():
    secret = re.compile(r"PASSWORD|SECRET|ACCESS_KEY")
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name):
                assert re.fullmatch(r"\$\{\w+:\?\}", value), f"{name} is written in the file"
            if "@" in value:
                assert re.search(r"//\w+:\$\{\w+:\?\}@", value), f"{name} holds a password"


@pytest.mark.parametrize(
    ("name", "route"), [("mlflow", "/api/2.0/mlflow/"), ("prefect", "/api/"), ("serve", "/readyz")]
)
def test_health_is_checked_by_the_address_that_clients_use(name: str, route: str):
    test = " ".join(SERVICES[name]["healthcheck"]["test"])
    assert re.search(rf"http://{name}:\d+{route}", test)


def test_mlflow_lets_in_the_name_that_clients_use():
    hosts = next(word for word in SERVICES["mlflow"]["command"] if word.startswith("--allowed-hosts="))
    assert {"mlflow", "mlflow:*"} <= set(hosts.removeprefix("--allowed-hosts=").split(","))


def test_named_volumes_and_mounted_files_exist():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FILE.parent / source).exists() if source.startswith(".") else source in STACK["volumes"]


def test_ports_are_open_to_this_machine_alone():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
