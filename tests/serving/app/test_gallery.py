"""Enrol, change and forget over HTTP, and what the audit log says of it."""

import base64
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest

from dml.retrieval.gallery import Gallery
from dml.serving.app.audit import read_audit
from dml.serving.app.factory import create_app
from dml.serving.app.keys import make_key
from dml.serving.app.settings import ServiceSettings
from tests.embedding.parts import png
from tests.retrieval.gallery.people import upload
from tests.serving.app.parts import NAME, ask, image, make_store, publish, running

BASE = f"/v1/indexes/{NAME}"
ANN = {"identity": "ann/b", "images": [image(900)["image"]], "attributes": {"year": 2001, "sold": True}}


@pytest.fixture
def own(tmp_path):
    """Settings of a store that the test changes."""
    store, *_ = make_store(tmp_path)
    return ServiceSettings(store=store, threads=1, recall_share=0, audit=tmp_path / "audit.jsonl")


def nearest(answer):
    hit = answer.json()["results"][0]["answers"][0]
    return hit["id"], hit["label"]


def test_who_was_enrolled_is_found_changed_and_forgotten(own):
    async def asking(client):
        enrolled = (await client.post(f"{BASE}/enrol", json=ANN)).json()
        (id_,) = enrolled["ids"]
        found = await client.post(
            f"{BASE}/search", json={"queries": [image(900)], "k": 1, "filter": "year = 2001"}
        )
        item = (await client.get(f"{BASE}/items/{quote(id_, safe='')}")).json()
        changed = await client.patch(
            f"{BASE}/items/{quote(id_, safe='')}", json={"attributes": {"year": 1999}}
        )
        after = (await client.get(f"{BASE}/items/{id_}")).json()
        forgotten = await client.delete(f"{BASE}/identities/{quote('ann/b', safe='')}")
        gone = await client.post(f"{BASE}/search", json={"queries": [image(900)], "k": 1})
        return enrolled, nearest(found), item, changed.json(), after, forgotten.json(), nearest(gone)

    enrolled, found, item, changed, after, forgotten, gone = ask(own, asking)
    (id_,) = enrolled["ids"]
    assert id_.startswith("ann/b/")
    assert found == (id_, "ann/b")
    assert (item["label"], item["attributes"]["sold"], item["enrolled"]) == ("ann/b", True, True)
    assert (after["attributes"]["year"], after["attributes"]["sold"]) == (1999, True)
    assert [enrolled["revision"], changed["revision"], forgotten["revision"]] == [1, 2, 3]
    assert forgotten["ids"] == [id_]
    assert gone[0] != id_


@pytest.mark.slow
def test_of_a_store_on_s3_another_machine_finds_who_was_enrolled_and_the_service_forgets(
    own, s3_store, monkeypatch, tmp_path
):
    upload(Path(own.store), s3_store)

    async def asking(client):
        (id_,) = (await client.post(f"{BASE}/enrol", json=ANN)).json()["ids"]
        found = await client.post(f"{BASE}/search", json={"queries": [image(900)], "k": 1})
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("DML_CACHE", str(tmp_path / "another machine"))
            other = Gallery.open(s3_store, NAME)
            assert other.item(id_).label == "ann/b"
            other.enrol("bob", images=[png(901)])
        await anyio.sleep(1)
        bob = await client.post(f"{BASE}/search", json={"queries": [image(901)], "k": 1})
        await client.delete(f"{BASE}/identities/{quote('ann/b', safe='')}")
        gone = await client.post(f"{BASE}/search", json={"queries": [image(900)], "k": 1})
        other.refresh()
        there = other.live.items["label"].to_pylist()
        return nearest(found)[1], nearest(bob)[1], nearest(gone)[0] == id_, "ann/b" in there

    settings = own.model_copy(update={"store": s3_store})
    assert ask(settings, asking) == ("ann/b", "bob", False, False)


def test_an_item_of_the_index_is_forgotten_too(own):
    async def asking(client):
        before = await client.post(f"{BASE}/search", json={"queries": [image(3)], "k": 1})
        await client.delete(f"{BASE}/items/00003.png")
        after = await client.post(f"{BASE}/search", json={"queries": [image(3)], "k": 1})
        return nearest(before)[0], nearest(after)[0], await client.get(f"{BASE}/items/00003.png")

    before, after, item = ask(own, asking)
    assert before == "00003.png" != after
    assert item.status_code == 404


def test_an_answer_says_whether_there_is_a_picture_of_it(tmp_path):
    store, dataset, ref = make_store(tmp_path)
    own = ServiceSettings(store=store, threads=1, recall_share=0, audit=tmp_path / "audit.jsonl")
    vector = [1.0] + [0.0] * (ref.embeddings.dim - 1)
    wanted = {"image": True, "vector": False, "00003.png": True}

    async def enrolling(client):
        for id_, body in (("image", {"images": [image(900)["image"]]}), ("vector", {"vectors": [vector]})):
            enrolled = await client.post(f"{BASE}/enrol", json={"identity": "ann", "ids": [id_], **body})
            assert enrolled.is_success

    async def asking(client):
        body = {"queries": [{"vector": vector}], "k": 50}
        items = (await client.post(f"{BASE}/search", json=body)).json()["results"][0]["answers"]
        grouped = (await client.post(f"{BASE}/search", json={**body, "group_by_identity": "all"})).json()
        images = [each for identity in grouped["results"][0]["identities"] for each in identity["images"]]
        said = [{each["id"]: each["has_picture"] for each in found} for found in (items, images)]
        details = {
            id_: (await client.get(f"{BASE}/items/{id_}")).json()["picture"] is not None for id_ in wanted
        }
        there = {id_: (await client.get(f"{BASE}/pictures/{id_}")).status_code == 200 for id_ in wanted}
        return [{id_: each[id_] for id_ in wanted} for each in said] + [details, there]

    ask(own, enrolling)
    assert ask(own, asking) == [wanted] * 4
    publish(store, dataset)  # what was enrolled is built in, and has no row in the dataset
    assert ask(own, asking) == [wanted] * 4


def test_a_picture_is_the_file_or_a_small_one(own):
    async def asking(client):
        enrolled = (await client.post(f"{BASE}/enrol", json=ANN)).json()
        item = (await client.get(f"{BASE}/items/{quote(enrolled['ids'][0], safe='')}")).json()
        vectors = {"identity": "bob", "vectors": [[1.0] + [0.0] * 15]}
        (bob,) = (await client.post(f"{BASE}/enrol", json=vectors)).json()["ids"]
        of_bob = (await client.get(f"{BASE}/items/{bob}")).json()["picture"]
        paths = [item["picture"], f"{BASE}/pictures/00003.png", f"{BASE}/pictures/00003.png?side=16"]
        return of_bob, [await client.get(path) for path in paths]

    of_bob, (enrolled, indexed, small) = ask(own, asking)
    assert of_bob is None
    assert (enrolled.content, enrolled.headers["content-type"]) == (png(900), "image/png")
    assert indexed.content == png(3)
    assert small.headers["content-type"] == "image/webp"


def test_what_another_process_enrols_is_found_soon(own):
    async def asking(client):
        gallery = Gallery.open(own.store, NAME)
        await anyio.to_thread.run_sync(lambda: gallery.enrol("ann", images=[png(900)]))
        with anyio.fail_after(5):
            while nearest(await client.post(f"{BASE}/search", json={"queries": [image(900)]}))[1] != "ann":
                await anyio.sleep(0.05)
        gallery.close()

    ask(own.model_copy(update={"refresh_seconds": 0.2}), asking)


def test_each_write_is_in_the_audit_log_with_who_and_what_became_of_it(own, tmp_path):
    keys = tmp_path / "keys" / "keys.json"
    made, writer = make_key(keys, "ward 3", ["read", "enrol", "forget"], [NAME], who="operator")
    app = create_app(own.model_copy(update={"keys": keys}))

    async def asking():
        async with running(app) as client:
            client.headers["Authorization"] = f"Bearer {writer}"
            await client.post(f"{BASE}/enrol", json=ANN)
            await client.delete(f"{BASE}/items/nothing")
            await client.delete(f"{BASE}/identities/ann%2Fb")

    anyio.run(asking)
    entries = list(read_audit(tmp_path / "audit.jsonl"))
    assert [(each.action, each.outcome, each.revision) for each in entries] == [
        ("enrol", "done", 1),
        ("forget", "refused", None),
        ("forget", "done", 2),
    ]
    assert {each.who for each in entries} == {f"{made.id} ward 3"}
    assert entries[0].identity == "ann/b"
    assert entries[2].ids == entries[0].ids
    assert base64.b64encode(png(900)).decode() not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [("ann\0", "without NUL"), ("ann\x07", "U+0007 in 'ann"), ("a" * 1001, "1000 characters")],
    ids=["nul", "bell", "long"],
)
def test_a_name_that_cannot_be_enrolled_is_refused_with_the_reason(own, name, said):
    async def asking(client):
        bodies = {**ANN, "identity": name}, {**ANN, "ids": [name]}
        refused = [await client.post(f"{BASE}/enrol", json=body) for body in bodies]
        return refused, (await client.get(BASE)).json()["enrolled"]

    refused, enrolled = ask(own, asking)
    assert [each.status_code for each in refused] == [422, 422]
    for each in refused:
        error = each.json()["error"]
        assert said in f"{error['must']} {error['got']}"
    assert enrolled == 0


def test_what_cannot_be_logged_is_not_done(own, tmp_path):
    (tmp_path / "audit.jsonl").mkdir()

    async def asking(client):
        refused = await client.post(f"{BASE}/enrol", json=ANN)
        return refused, (await client.get(BASE)).json()["enrolled"]

    refused, enrolled = ask(own, asking)
    assert (refused.status_code, refused.json()["error"]["code"], enrolled) == (503, "audit", 0)


@pytest.mark.parametrize(
    ("permission", "allowed"),
    [
        ("read", []),
        ("enrol", ["POST", "PATCH"]),
        ("forget", ["DELETE"]),
        ("admin", ["POST", "PATCH", "DELETE"]),
    ],
)
def test_a_permission_allows_what_it_says(own, tmp_path, permission, allowed):
    keys = tmp_path / "keys.json"
    _, key = make_key(keys, "k", [permission], who="operator")
    app = create_app(own.model_copy(update={"keys": keys}))

    async def asking():
        async with running(app) as client:
            client.headers["Authorization"] = f"Bearer {key}"
            answers = {
                "POST": await client.post(f"{BASE}/enrol", json=ANN),
                "PATCH": await client.patch(f"{BASE}/items/00004.png", json={"attributes": {"year": 1}}),
                "DELETE": await client.delete(f"{BASE}/items/00005.png"),
            }
            return [method for method, answer in answers.items() if answer.status_code != 403]

    assert anyio.run(asking) == allowed
