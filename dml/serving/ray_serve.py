"""The service as a Ray Serve application: the same app in each replica, its images batched by Ray.

    serve run dml.serving.ray_serve:application store=s3://bucket/store keys=/etc/dml/keys.json

`infra/kuberay/rayservice.yaml` deploys it. Several replicas search; what is enrolled goes to one writer, see
docs/service.md.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from dml.config.part import parse
from dml.errors import InvalidSetting
from dml.serving.app.factory import create_app
from dml.serving.app.settings import ServiceSettings
from dml.settings import store_uri

_REPLICA = "searcher"


@serve.deployment(name=_REPLICA)
@serve.ingress()
class _Replica:
    """One process that answers.

    Args:
        settings: JSON of `ServiceSettings`.
    """

    def __init__(self, settings: str) -> None:
        self._settings = ServiceSettings.model_validate_json(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        batching = self._settings.batching
        batched = serve.batch(max_batch_size=batching.images, batch_wait_timeout_s=batching.wait_ms / 1000)
        return create_app(self._settings, batched=batched)


def application(arguments: dict[str, Any]) -> Any:
    """The application for `serve run`, `serve deploy` and `serve.run`.

    Args:
        arguments: settings of `ServiceSettings`, and of the deployment: `min_replicas` (1), `max_replicas`
            (4), `requests_per_replica` (16: from more, a replica is added), `cpus` (1) and `gpus` (0) of a
            replica; `without_keys`: true for a cluster that only trusted clients reach.

    Returns:
        A `serve.Application`.

    Raises:
        InvalidSetting: no keys, and `without_keys` is not true; or an unknown setting.
    """
    settings = dict(arguments)
    replicas = {
        "min_replicas": int(settings.pop("min_replicas", 1)),
        "max_replicas": int(settings.pop("max_replicas", 4)),
        "target_ongoing_requests": int(settings.pop("requests_per_replica", 16)),
    }
    resources = {"num_cpus": float(settings.pop("cpus", 1)), "num_gpus": float(settings.pop("gpus", 0))}
    without_keys = str(settings.pop("without_keys", False)).lower() == "true"
    if not settings.get("keys") and not without_keys:
        raise InvalidSetting(
            "A service that other machines reach must ask for API keys; got none. Give keys=FILE, made by "
            "dml keys make, or without_keys=true in a cluster that only trusted clients reach."
        )
    settings["store"] = store_uri(settings.get("store"))
    if settings.get("keys"):
        settings["keys"] = str(Path(str(settings["keys"])).resolve())
    checked = parse(ServiceSettings, settings)
    deployment: Any = _Replica  # which Ray's decorator has made of it
    return deployment.options(
        autoscaling_config=replicas,
        ray_actor_options=resources,
        max_ongoing_requests=checked.limits.requests,
        health_check_period_s=10,
        graceful_shutdown_timeout_s=checked.limits.seconds,
    ).bind(checked.model_dump_json())
