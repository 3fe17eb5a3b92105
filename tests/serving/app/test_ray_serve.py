"""The same app as a Ray Serve application, on a local Ray cluster."""

import httpx
import pytest

from dml.errors import InvalidSetting
from tests.embedding.parts import png
from tests.ports import free_port
from tests.serving.app.parts import NAME, image, make_store


def test_an_application_without_keys_must_be_asked_for():
    pytest.importorskip("ray.serve")
    from dml.serving.ray_serve import application

    with pytest.raises(InvalidSetting, match="dml keys make"):
        application({"store": "store"})


@pytest.mark.ray
@pytest.mark.slow
def test_replicas_batch_search_and_enrol_on_a_ray_cluster(tmp_path):
    from ray import serve

    from dml.cluster import ray_session
    from dml.serving.client import Client
    from dml.serving.ray_serve import application

    store, _, index = make_store(tmp_path)
    port = free_port()
    with ray_session(num_cpus=2):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            arguments = {
                "store": store,
                "without_keys": True,
                "min_replicas": 2,
                "max_replicas": 2,
                "cpus": 0.5,
            }
            serve.run(application(arguments), name="dml", route_prefix="/")
            address = f"http://127.0.0.1:{port}"
            with Client(address) as client:
                for seed in range(6):
                    found = client.search(NAME, [png(seed), png(seed + 1)], k=1)
                    assert [each.answers[0].id for each in found.results] == [
                        f"{seed:05d}.png",
                        f"{seed + 1:05d}.png",
                    ]
                    assert found.index == str(index)
                client.enrol(NAME, "ann", images=[png(900)])
            refused = httpx.post(f"{address}/v1/indexes/{NAME}/search", json={"queries": [image(1)], "k": 0})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_request")
            assert httpx.get(f"{address}/-/healthz").text == "success", "the probe of infra/kuberay"
            assert httpx.head(f"{address}/readyz").status_code == 200
            searchers = serve.status().applications["dml"].deployments["searcher"]
            assert sum(searchers.replica_states.values()) == 2
        finally:
            serve.shutdown()
