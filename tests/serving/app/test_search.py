"""Searches over HTTP: what a client sends and gets."""

import math

import numpy as np

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from dml.serving.app.settings import ServiceSettings
from tests.embedding.vectors import ids_of, random_vectors, unit, write_parquet
from tests.serving.app.parts import NAME, ask, image, post

SEARCH = f"/v1/indexes/{NAME}/search"


def test_images_vectors_and_ids_of_one_batch_are_answered_in_their_places(settings, served):
    async def asking(client):
        queries = [image(3), {"id": "00003.png"}, image(17)]
        return (await client.post(SEARCH, json={"queries": queries, "k": 2})).json()

    answer = ask(settings, asking)
    first, second, third = ([hit["id"] for hit in result["answers"]] for result in answer["results"])
    assert (first[0], third[0]) == ("00003.png", "00017.png")
    assert second[0] == first[1]
    assert "00003.png" not in second
    assert answer["index"] == str(served[2])
    assert answer["embedder"] == served[2].embeddings.embedder.fingerprint


def test_a_filter_as_text_or_json_or_both_holds_for_every_answer(settings):
    as_json = {"op": "compare", "column": "year", "operator": ">", "value": 2000}
    for filter in ("sold and year > 2000", ["sold", as_json]):
        done = post(settings, SEARCH, {"queries": [image(3)], "k": 40, "filter": filter})
        answers = done.json()["results"][0]["answers"]
        assert len(answers) == 14
        assert all(hit["attributes"]["sold"] and hit["attributes"]["year"] > 2000 for hit in answers)


def test_an_answer_is_accepted_from_the_threshold_on(settings):
    done = post(settings, SEARCH, {"queries": [image(3), image(900)], "k": 3, "threshold": 0.9999}).json()
    known, unknown = done["results"]
    assert (known["status"], unknown["status"]) == ("known", "unknown")
    assert [hit["accepted"] for hit in known["answers"]] == [True, False, False]
    assert done["threshold"] == {"similarity": 0.9999, "fpir": None}


def test_an_error_rate_of_an_index_that_was_not_calibrated_is_refused(settings):
    done = post(settings, SEARCH, {"queries": [image(3)], "fpir": 0.01})
    assert (done.status_code, done.json()["error"]["code"]) == (409, "not_calibrated")
    without = post(settings, SEARCH, {"queries": [image(3)]}).json()
    assert (without["threshold"], without["results"][0]["status"]) == (None, None)
    assert "not calibrated" in without["no_threshold"]


def test_identities_are_answered_by_their_most_similar_image(settings):
    body = {"queries": [image(3)], "k": 2, "group_by_identity": "best"}
    found = post(settings, SEARCH, body).json()["results"][0]
    assert found["identities"][0]["identity"] == "class 3"
    assert found["identities"][0]["images"][0]["id"] == "00003.png"
    assert found["answers"] == []


def test_the_plan_is_explained_on_request(settings):
    explained = post(settings, SEARCH, {"queries": [image(3)], "filter": "sold", "explain": True}).json()
    assert explained["execution"]["count"] == 20
    assert explained["execution"]["recall"]["basis"] == "exact"
    assert post(settings, SEARCH, {"queries": [image(3)]}).json()["execution"] is None


def test_an_index_says_what_a_form_of_filters_needs(settings, served):
    async def asking(client):
        listed = (await client.get("/v1/indexes")).json()["indexes"]
        return listed, (await client.get(f"/v1/indexes/{NAME}")).json()

    (listed,), detail = ask(settings, asking)
    assert (listed["name"], listed["rows"], listed["takes_images"]) == (NAME, 40, True)
    columns = {column["name"]: column for column in detail["columns"]}
    assert columns["sold"]["type"] == "boolean"
    assert {(each["value"], each["count"]) for each in columns["sold"]["values"]} == {(True, 20), (False, 20)}
    assert (columns["year"]["low"], columns["year"]["high"]) == (1990, 2029)
    assert columns["weight"]["missing"] == 8
    assert [version["version"] for version in detail["versions"]] == [served[2].version]


def test_a_model_is_listed_with_the_indexes_that_it_embedded(settings, served):
    async def asking(client):
        return (await client.get("/v1/models")).json()["models"]

    (model,) = ask(settings, asking)
    assert (model["dim"], model["indexes"]) == (16, [str(served[2])])
    assert model["embedder"] == served[2].embeddings.embedder.fingerprint


def test_the_process_is_alive_ready_and_measured(settings):
    async def asking(client):
        await client.post(SEARCH, json={"queries": [image(3)]})
        return [await client.get(path) for path in ("/healthz", "/readyz", "/metrics")]

    alive, ready, measured = ask(settings, asking)
    assert (alive.json()["status"], ready.json()["status"]) == ("ok", "ready")
    assert 'dml_stage_seconds_count{stage="encode"} 1.0' in measured.text
    assert f'dml_index_rows{{index="{NAME}"}} 40.0' in measured.text


def test_numbers_that_json_cannot_hold_are_null(tmp_path):
    vectors = unit(random_vectors()).astype(np.float32)
    prices = [[math.nan, math.inf, -math.inf, 2.0][row % 4] for row in range(len(vectors))]
    file = write_parquet(tmp_path, vectors, id=ids_of(len(vectors)), price=prices)
    store = str(tmp_path / "store")
    embeddings = import_vectors(store, "priced", file).embeddings
    publish_index(store, build_index(store, "priced", embeddings, IndexConfig()))

    async def asking(client):
        query = {"queries": [{"vector": vectors[0].tolist()}], "k": len(vectors)}
        paths = ("/v1/indexes/priced", "/v1/indexes/priced/items/item%200", "/v1/indexes")
        return await client.post("/v1/indexes/priced/search", json=query), [
            await client.get(p) for p in paths
        ]

    found, got = ask(ServiceSettings(store=store, threads=1, recall_share=0), asking)
    prices = [hit["attributes"]["price"] for hit in found.json()["results"][0]["answers"]]
    assert (prices.count(2.0), prices.count(None)) == (len(vectors) // 4, len(vectors) * 3 // 4)
    assert [answer.status_code for answer in got] == [200, 200, 200]
    (column,) = (each for each in got[0].json()["columns"] if each["name"] == "price")
    assert [each["value"] for each in column["values"]] == [2.0]
