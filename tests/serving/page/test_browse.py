"""The routes that look through datasets and lineage."""

import io
import shutil
import socket
import time
from pathlib import Path

import pytest
from PIL import Image

from dml import storage
from dml.serving.app.audit import read_audit
from dml.serving.app.browse import REGISTRY_WAIT_S
from dml.serving.app.keys import make_key
from dml.serving.app.settings import ServiceSettings
from dml.serving.browsed import BrowsedDataset
from tests.serving.app.parts import ask
from tests.serving.page.parts import (
    IDENTITIES,
    MARKUP,
    NAME,
    PER_IDENTITY,
    drawing,
    file_of,
    label_of,
    make_dataset,
    make_index,
)


@pytest.fixture
def get(looked_at):
    """Ask once; (status, JSON)."""
    settings = ServiceSettings(store=looked_at[0], threads=1, recall_share=0)

    def ask_once(path, *, body=None, key=None, keys=None, store=None, **parameters):
        async def asking(client):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            method = "GET" if body is None else "POST"
            return await client.request(
                method, f"/v1/{path}", params=parameters or None, json=body, headers=headers
            )

        return ask(settings.model_copy(update={"keys": keys, "store": store or settings.store}), asking)

    return ask_once


def test_a_dataset_is_listed_with_columns_of_every_type(get, looked_at):
    _, dataset, _ = looked_at
    (listed,) = get("datasets").json()["datasets"]
    detail = get(f"datasets/{NAME}").json()
    assert listed == {key: detail[key] for key in listed}
    assert (listed["version"], listed["rows"], listed["quarantined"]) == (dataset.version, dataset.rows, 1)
    columns = {column["name"]: column for column in detail["columns"]}
    assert list(columns) == ["label", "split", "width", "height", "price", "region", "sold", "year"]
    assert {name: columns[name]["type"] for name in ("label", "price", "sold", "year")} == {
        "label": "text",
        "price": "number",
        "sold": "boolean",
        "year": "integer",
    }
    assert (columns["year"]["low"], columns["year"]["high"]) == (1990, 1989 + IDENTITIES)
    assert columns["price"]["missing"] == IDENTITIES
    counts = {value["value"]: value["count"] for value in columns["region"]["values"]}
    assert counts[MARKUP] == PER_IDENTITY * IDENTITIES // 3


def test_items_are_filtered_and_come_page_by_page(get):
    where = [{"op": "compare", "column": "sold", "operator": "=", "value": True}, "year < 1994"]
    whole = get(f"datasets/{NAME}/items", body={"filter": where}).json()
    assert whole["total"] == 2 * PER_IDENTITY
    assert {item["label"] for item in whole["items"]} == {label_of(0), label_of(2)}
    later = get(f"datasets/{NAME}/items", body={"filter": where, "first": 4, "most": 1}).json()
    assert later["items"] == whole["items"][4:5]
    assert get(f"datasets/{NAME}/items", body={"filter": "label = 'nobody at all'"}).json()["total"] == 0
    wrong = get(f"datasets/{NAME}/items", body={"filter": "colour = 'red'"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "invalid_filter")


@pytest.mark.parametrize("identity", range(5))
def test_a_picture_is_sent_anew_whatever_its_id_is(get, identity):
    answer = get(f"datasets/{NAME}/picture", id=file_of(identity, 1), side=16)
    picture = Image.open(io.BytesIO(answer.content))
    assert (answer.headers["content-type"], picture.format, picture.size) == ("image/webp", "WEBP", (16, 16))
    expected = Image.open(io.BytesIO(drawing(identity, 1))).resize((16, 16)).convert("L")
    difference = sum(
        abs(a - b) for a, b in zip(picture.convert("L").tobytes(), expected.tobytes(), strict=True)
    )
    assert difference / 256 < 12


def test_what_is_wrong_with_a_dataset_is_found(get):
    quarantine = get(f"datasets/{NAME}/quarantine").json()
    assert [(each["id"], each["reason"]) for each in quarantine["problems"]] == [
        ("broken.png", "not an image")
    ]
    suspects = get(f"datasets/{NAME}/suspected_labels").json()
    assert [(each["id"], each["agreed"]) for each in suspects["suspects"]] == [(file_of(8, 0), label_of(8))]
    pairs = get(f"datasets/{NAME}/near_duplicates", most=1).json()
    assert (pairs["total"], len(pairs["pairs"])) == (2, 1)
    assert {pairs["pairs"][0]["pair"]["first"], pairs["pairs"][0]["pair"]["second"]} == {
        file_of(5, 1),
        file_of(5, 2),
    }


def test_lineage_leads_from_the_dataset_to_the_index(get, looked_at):
    _, dataset, index = looked_at
    (shelf,) = get("lineage").json()["indexes"]
    (version,) = shelf["versions"]
    assert version["current"]
    assert [(step["kind"], step["name"]) for step in version["lineage"]] == [
        ("dataset", str(dataset)),
        ("package", index.embeddings.embedder.version),
        ("embeddings", index.embeddings.version),
        ("index", str(index)),
    ]


def test_servers_of_the_stack_are_linked_without_their_passwords(get, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:4200/api")
    assert get("lineage").json()["pages"] == [{"name": "Prefect", "url": "http://127.0.0.1:4200"}]


def test_a_damaged_dataset_is_said_beside_the_others(get, tmp_path):
    folder = tmp_path / "own"
    store = str(folder / "store")
    dataset = make_dataset(folder / "images", store)
    make_index(store, dataset)
    broken = Path(store, "datasets", "broken", dataset.version)
    shutil.copytree(dataset.uri, broken)
    (broken / storage.MANIFEST).write_text("no manifest")
    answer = get("datasets", store=store).json()
    assert [each["name"] for each in answer["datasets"]] == [NAME]
    (said,) = answer["damaged"]
    assert "broken" in said
    assert str(folder) not in said


def test_a_key_of_one_gallery_sees_no_dataset(get, tmp_path):
    keys = tmp_path / "keys.json"
    _, whole = make_key(keys, "reader", ["read"], who="operator")
    _, narrow = make_key(keys, "narrow", ["read"], [NAME], who="operator")
    assert get("datasets", keys=keys, key=whole).status_code == 200
    refused = get(f"datasets/{NAME}/items", body={}, keys=keys, key=narrow)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert get("lineage", keys=keys, key=narrow).status_code == 200


def test_a_label_is_corrected_and_an_item_removed_by_a_key_of_an_admin_alone(get, tmp_path):
    folder = tmp_path / "own"
    store = str(folder / "store")
    dataset = make_dataset(folder / "images", store)
    make_index(store, dataset)
    keys = tmp_path / "keys.json"
    _, reader = make_key(keys, "reader", ["read", "enrol", "forget"], who="operator")
    _, admin = make_key(keys, "Ada", ["admin"], who="operator")
    change = {"id": file_of(8, 0), "label": label_of(8)}
    path = f"datasets/{NAME}/corrections"
    assert get(path, body=change, keys=keys, key=reader, store=store).status_code == 403
    corrected = get(path, body=change, keys=keys, key=admin, store=store).json()
    assert corrected["version"] != dataset.version
    removal = {"id": file_of(9, 0)}
    removed = get(f"datasets/{NAME}/removals", body=removal, keys=keys, key=admin, store=store).json()
    assert removed["rows"] == dataset.rows - 1
    listed = get(path, keys=keys, key=reader, store=store).json()["corrections"]
    assert [(each["id"], each["label"]) for each in listed] == [
        (file_of(8, 0), label_of(8)),
        (file_of(9, 0), None),
    ]
    assert all("Ada" in each["who"] for each in listed)
    unknown = get(path, body={"id": "nothing", "label": "x"}, keys=keys, key=admin, store=store)
    assert unknown.status_code == 404
    back = get(f"datasets/{NAME}/revocations", body={"id": file_of(8, 0)}, keys=keys, key=admin, store=store)
    assert back.status_code == 200
    entries = list(read_audit(Path(store) / "service" / "audit.jsonl"))
    assert [(each.action, each.ids, each.outcome) for each in entries] == [
        ("correct", [file_of(8, 0)], "done"),
        ("remove", [file_of(9, 0)], "done"),
        ("correct", ["nothing"], "refused"),
        ("revoke", [file_of(8, 0)], "done"),
    ]
    assert (entries[0].gallery, entries[0].identity) == (NAME, label_of(8))
    assert [each.version for each in entries] == [
        corrected["version"],
        removed["version"],
        None,
        back.json()["version"],
    ]
    assert all("Ada" in each.who for each in entries)


def test_near_duplicates_that_take_long_are_there_when_they_are_asked_for_again(looked_at):
    store, dataset, _ = looked_at
    browsed = BrowsedDataset(store, dataset)
    with pytest.raises(TimeoutError):
        browsed.near_duplicates(wait_s=0)
    pairs = browsed.near_duplicates()
    assert pairs
    assert browsed.near_duplicates(wait_s=0) == pairs


def test_an_mlflow_that_does_not_answer_delays_the_lineage_by_two_seconds(get, monkeypatch):
    get("lineage")  # opens the index and imports MLflow, which must not count
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        start = time.monotonic()
        lineage = get("lineage").json()
    assert time.monotonic() - start < REGISTRY_WAIT_S + 60, "MLflow would try again for minutes"
    assert lineage["models"] == []
    assert address in lineage["models_missing"]
    assert lineage["indexes"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("datasets/nothing", 404),
        ("datasets/..%2F..%2Fetc", 404),
        ("datasets/Not a name", 422),
        (f"datasets/{NAME}/picture?id=..%2F..%2Fetc%2Fpasswd", 404),
        (f"datasets/{NAME}/picture?id=x&side=100000", 422),
        (f"datasets/{NAME}/quarantine?first=-1", 422),
    ],
)
def test_what_is_not_there_is_refused_in_the_form_of_all_errors(get, path, status):
    answer = get(path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) >= {"code", "must", "got", "do", "request_id"}
