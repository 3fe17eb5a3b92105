"""Kubernetes manifests against its own schemas; what is not a core kind against a schema of ours."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

INFRA = Path(__file__).parents[2] / "infra"
CLUSTER = yaml.safe_load((INFRA / "kuberay" / "raycluster.yaml").read_text())
SERVICE = yaml.safe_load((INFRA / "kuberay" / "rayservice.yaml").read_text())
POOL = json.loads((INFRA / "prefect" / "work-pool.json").read_text())

GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": {"type": "object", "required": ["spec"]},
}
COUNT = {"type": "integer", "minimum": 0}
RAY_CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
            "properties": {
                "rayVersion": {"type": "string"},
                "enableInTreeAutoscaling": {"type": "boolean"},
                "autoscalerOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"idleTimeoutSeconds": COUNT},
                },
                "headGroupSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["template"],
                    "properties": GROUP,
                },
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "template"],
                        "properties": {
                            **GROUP,
                            "groupName": {"type": "string"},
                            "replicas": COUNT,
                            "minReplicas": COUNT,
                            "maxReplicas": COUNT,
                        },
                    },
                },
            },
        },
    },
}


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}


def pod_templates() -> list[dict[str, Any]]:
    spec = CLUSTER["spec"]
    return [group["template"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def filled(template: Any, values: dict[str, Any]) -> Any:
    """The job template as Prefect fills it: a placeholder alone takes the value's type."""
    if isinstance(template, dict):
        return {key: filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, values) for value in template]
    if isinstance(template, str) and (alone := re.fullmatch(r"\{\{ (\w+) \}\}", template)):
        return values[alone[1]]
    if isinstance(template, str):
        return re.sub(r"\{\{ (\w+) \}\}", lambda match: str(values[match[1]]), template)
    return template


def test_the_ray_cluster_fits_the_schema():
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(CLUSTER)


def test_its_pods_are_pods():
    for template in pod_templates():
        kubernetes_validate.validate(as_pod(template), "1.34", strict=True)


def test_workers_have_gpus_and_the_head_has_none():
    head, *workers = pod_templates()
    gpus = [
        [c["resources"]["limits"].get("nvidia.com/gpu") for c in template["spec"]["containers"]]
        for template in (head, *workers)
    ]
    assert gpus == [[None, None], ["1"]]


def test_ray_is_the_version_that_the_images_install():
    lock = (INFRA.parent / "requirements.lock").read_text()
    assert f"\nray=={CLUSTER['spec']['rayVersion']}\n" in lock


def test_secrets_are_named_not_written():
    for template in pod_templates():
        for container in template["spec"]["containers"]:
            assert container["envFrom"] == [{"secretRef": {"name": "dml-store"}}]
            assert all(
                not re.search("KEY|SECRET|PASSWORD", entry["name"]) for entry in container.get("env", [])
            )


def test_the_service_is_a_ray_cluster_that_runs_our_application():
    cluster = SERVICE["spec"]["rayClusterConfig"]
    jsonschema.Draft202012Validator(RAY_CLUSTER["properties"]["spec"]).validate(cluster)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        kubernetes_validate.validate(as_pod(group["template"]), "1.34", strict=True)
    assert cluster["rayVersion"] == CLUSTER["spec"]["rayVersion"]
    (served,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
    module, _, name = served["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    assert served["args"]["keys"], "others reach it"


def test_the_service_is_probed_over_http_on_ports_that_it_names():
    """A probe that runs a program needs it in the image: KubeRay's own call wget."""
    cluster = SERVICE["spec"]["rayClusterConfig"]
    asked = []
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for kind in ("readinessProbe", "livenessProbe"):
            request = container[kind]["httpGet"]
            asked.append((ports[request["port"]], request["path"]))
    assert asked == [
        (8265, "/api/gcs_healthz"),
        (DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, "/api/local_raylet_healthz"),
        (8000, "/-/healthz"),
        (DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, "/api/local_raylet_healthz"),
    ]


def test_the_work_pool_makes_valid_jobs_with_gpus():
    variables = POOL["variables"]["properties"]
    jsonschema.Draft202012Validator.check_schema(POOL["variables"])
    values = {name: schema.get("default") for name, schema in variables.items()}
    # Prefect hands lists and maps to Kubernetes in its own form; here as the schema wants them.
    values |= {
        "name": "train",
        "command": ["prefect", "flow-run", "execute"],
        "env": [],
        "labels": {"a": "b"},
    }
    job = filled(POOL["job_configuration"]["job_manifest"], values)
    kubernetes_validate.validate(job, "1.34", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_every_placeholder_of_the_work_pool_is_a_variable():
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(POOL["job_configuration"])))
    assert used == set(POOL["variables"]["properties"])
