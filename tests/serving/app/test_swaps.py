"""New versions of index and model are taken into use under load; no answer is mixed, and none fails."""

import gc
import weakref

import anyio
import pytest

from dml.serving.app.factory import create_app
from dml.serving.app.settings import ServiceSettings
from tests.serving.app.parts import NAME, image, make_store, publish, running

SEARCH = f"/v1/indexes/{NAME}/search"


def test_a_switch_of_models_under_load_gives_no_mixed_and_no_failed_answer(tmp_path):
    store, dataset, first = make_store(tmp_path)
    settings = ServiceSettings(store=store, refresh_seconds=0.05, threads=1, recall_share=0)
    app = create_app(settings)
    versions = {str(first): (first.embeddings.embedder.fingerprint, 16)}
    answers, ended = [], []

    async def search(client, seed):
        while not ended:
            body = {"queries": [image(seed), image(seed + 1), {"id": f"{seed:05d}.png"}], "k": 2}
            answers.append((seed, await client.post(SEARCH, json=body)))

    async def switch():
        for seed, dim in ((2, 24), (3, 16), (4, 24)):
            ref = await anyio.to_thread.run_sync(lambda s=seed, d=dim: publish(store, dataset, seed=s, dim=d))
            versions[str(ref)] = (ref.embeddings.embedder.fingerprint, dim)
            with anyio.fail_after(200):
                while answers[-1][1].json().get("index") != str(ref):
                    await anyio.sleep(0.02)
        ended.append(True)

    async def asking():
        async with running(app) as client:
            former = weakref.ref(app.state.service.indexes.opened[NAME])
            former_model = weakref.ref(app.state.service.indexes.opened[NAME].package)
            async with anyio.create_task_group() as group:
                for seed in (3, 9, 17):
                    group.start_soon(search, client, seed)
                await anyio.sleep(0.1)
                group.start_soon(switch)
            gc.collect()
            return former(), former_model()

    assert anyio.run(asking) == (None, None), "what nobody uses is freed"
    seen = set()
    for seed, answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["embedder"], found["dim"]) == versions[found["index"]]
        first, second, _ = (result["answers"][0] for result in found["results"])
        assert (first["id"], second["id"]) == (f"{seed:05d}.png", f"{seed + 1:05d}.png")
        assert min(first["similarity"], second["similarity"]) > 0.9999, "query and item by one model"
        seen.add(found["index"])
    assert seen == versions.keys()


@pytest.mark.slow
def test_what_is_enrolled_during_a_switch_of_models_is_found_by_the_new_model(tmp_path):
    store, dataset, _first = make_store(tmp_path)
    app = create_app(ServiceSettings(store=store, refresh_seconds=0.05, threads=1, recall_share=0))
    enrolled, ended = [], []

    async def enrol(client):
        seed = 1000
        while not ended:
            body = {"identity": f"guest {seed}", "images": [image(seed)["image"]], "ids": [f"guest/{seed}"]}
            answer = await client.post(f"/v1/indexes/{NAME}/enrol", json=body)
            assert answer.status_code == 200, answer.text
            enrolled.append(seed)
            seed += 1
            await anyio.sleep(0.05)

    async def search(client, seed):
        while not ended:
            answer = await client.post(SEARCH, json={"queries": [image(seed)], "k": 1})
            assert answer.status_code == 200, answer.text
            assert answer.json()["results"][0]["answers"][0]["id"] == f"{seed:05d}.png"

    async def asking():
        async with running(app) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(enrol, client)
                group.start_soon(search, client, 7)
                while len(enrolled) < 3:
                    await anyio.sleep(0.02)
                second = await anyio.to_thread.run_sync(lambda: publish(store, dataset, seed=2, dim=24))
                with anyio.fail_after(200):
                    while app.state.service.indexes.opened[NAME].ref != second:
                        await anyio.sleep(0.02)
                soon = len(enrolled) + 2
                while len(enrolled) < soon:
                    await anyio.sleep(0.02)
                ended.append(True)
            return [
                await client.post(SEARCH, json={"queries": [image(seed)], "k": 1}) for seed in enrolled
            ], second

    answers, second = anyio.run(asking)
    assert len(answers) >= 5
    for seed, answer in zip(enrolled, answers, strict=True):
        found = answer.json()
        assert found["embedder"] == second.embeddings.embedder.fingerprint
        (hit,) = found["results"][0]["answers"]
        assert hit["id"] == f"guest/{seed}"
        assert hit["similarity"] > 0.9999
