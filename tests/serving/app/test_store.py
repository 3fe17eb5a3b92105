"""A store that goes, changes or is not there, and what a service makes of it."""

import os
import shutil
import sys
from pathlib import Path

import anyio
import pytest

from dml.cli.command import run
from dml.data.dataset import find_dataset
from dml.serving.app.factory import create_app
from dml.serving.app.keys import make_key
from dml.serving.app.settings import ServiceSettings
from tests.serving.app.parts import NAME, ask, image, make_store, publish, running

BASE = f"/v1/indexes/{NAME}"
ANN = {"identity": "ann", "images": [image(900)["image"]]}
PAUSE_S = 0.3


@pytest.fixture
def own(tmp_path):
    """Settings of a store that the test changes."""
    store, *_ = make_store(tmp_path)
    return ServiceSettings(store=store, threads=1, recall_share=0, refresh_seconds=0.02)


def test_a_store_that_has_gone_is_searched_from_memory_and_neither_written_nor_begun_anew(own, tmp_path):
    away = tmp_path / "away"

    async def asking(client):
        os.rename(own.store, away)
        await anyio.sleep(PAUSE_S)
        found = await client.post(f"{BASE}/search", json={"queries": [{"id": "00000.png"}]})
        refused = await client.post(f"{BASE}/enrol", json=ANN)
        datasets = await client.get("/v1/datasets")
        is_begun = Path(own.store).exists()
        os.rename(away, own.store)
        enrolled = await client.post(f"{BASE}/enrol", json=ANN)
        return found, refused, datasets, is_begun, enrolled

    found, refused, datasets, is_begun, enrolled = ask(own, asking)
    assert (found.status_code, enrolled.status_code, is_begun) == (200, 200, False)
    for answer in (refused, datasets):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"]
        assert own.store not in answer.text


def test_a_key_of_a_store_that_has_gone_stays_in_use(own, tmp_path):
    path, away = Path(own.store) / "service" / "keys.json", tmp_path / "away"
    _, reader = make_key(path, "page", ["read"], who="operator")

    async def asking():
        async with running(create_app(own.model_copy(update={"keys": path}))) as client:
            client.headers["Authorization"] = f"Bearer {reader}"
            os.rename(own.store, away)
            await anyio.sleep(PAUSE_S)
            found = await client.post(f"{BASE}/search", json={"queries": [{"id": "00000.png"}]})
            datasets = await client.get("/v1/datasets")
            os.rename(away, own.store)
            path.unlink()
            await anyio.sleep(PAUSE_S)
            return found, datasets, await client.get(BASE)

    found, datasets, without_file = anyio.run(asking)
    assert (found.status_code, datasets.status_code, without_file.status_code) == (200, 503, 401)


def test_an_index_that_was_removed_is_neither_served_nor_measured(own):
    async def asking(client):
        before = (await client.get("/metrics")).text
        shutil.rmtree(Path(own.store) / "indexes" / NAME)
        await anyio.sleep(PAUSE_S)
        after = (await client.get("/metrics")).text
        return before, after, (await client.get(BASE)).status_code, await client.get("/readyz")

    before, after, status, ready = ask(own, asking)
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
    assert "it has none any more" in ready.json()["error"]["got"]
    assert f'dml_index_rows{{index="{NAME}"}} 40.0' in before
    assert f'{{index="{NAME}"}}' not in "".join(line for line in after.splitlines() if "rows" in line)
    assert status == 404


def test_keys_that_cannot_be_read_stay_as_they_were_and_new_versions_are_found(own, tmp_path):
    path = tmp_path / "keys.json"
    _, reader = make_key(path, "page", ["read"], who="operator")

    async def asking():
        async with running(create_app(own.model_copy(update={"keys": path}))) as client:
            client.headers["Authorization"] = f"Bearer {reader}"
            former = (await client.get(BASE)).json()["version"]
            path.write_text("{")
            dataset = find_dataset(own.store, NAME)
            await anyio.to_thread.run_sync(lambda: publish(own.store, dataset, seed=2))
            with anyio.fail_after(20):
                while (answer := await client.get(BASE)).json().get("version") == former:
                    await anyio.sleep(0.02)
            return answer

    assert anyio.run(asking).status_code == 200


@pytest.mark.parametrize(
    "words", [["keys"], ["keys", "revoke", "1a2b3c4d"], ["serve"], ["serve", "--ask-for-keys"]]
)
def test_asking_about_a_store_that_is_not_there_makes_none(tmp_path, monkeypatch, capsys, words):
    store = tmp_path / "store"
    monkeypatch.setattr(sys, "argv", ["dml", *words, "--store", str(store)])
    assert run() == (0 if words == ["keys"] else 2)
    assert "No such command" not in capsys.readouterr().err
    assert not store.exists()


@pytest.mark.parametrize("setting", ["store=elsewhere", "keys=null", "indexes=[]"])
def test_what_has_an_option_of_its_own_is_no_setting(tmp_path, monkeypatch, capsys, setting):
    monkeypatch.setattr(sys, "argv", ["dml", "serve", "--store", str(tmp_path), "--set", setting])
    assert run() == 2
    assert f"got {setting.partition('=')[0]}. Use " in capsys.readouterr().err


def test_a_file_of_keys_is_asked_for_on_this_machine_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["dml", "serve", "--store", str(tmp_path), "--keys", str(tmp_path / "keys.json")]
    )
    assert run() == 2
    assert "A service that asks for API keys must have one" in capsys.readouterr().err
