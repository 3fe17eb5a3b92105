"""Which indexes are refreshed by themselves: the store says it, and one failure stops no other."""

import json
import sys

import pytest

from dml import storage
from dml.cli import main
from dml.config import IngestConfig
from dml.errors import InvalidData, InvalidSetting, MissingArtifact, Unreachable
from dml.retrieval.index import find_index
from dml.retrieval.refresh import ask_refresh, end_refresh, find_refresh, names_to_refresh, refreshed_from
from flows.index import index_flow
from flows.ingest import ingest_flow
from flows.refresh import RefreshFailed, refresh_flow
from flows.reindex import reindex_flow
from flows.schedules import next_refresh, prefect_api_url, read_schedules
from flows.train import train_flow
from tests.answers import require_declared_type

NIGHTLY = "0 3 * * *"
SOURCE = "glyphs:classes=8,per_class=5"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a dataset, a model and the indexes `shop` and `other`."""
    store = str(tmp_path_factory.mktemp("made") / "store")
    ingest_flow.fn(IngestConfig(name="shop", source=SOURCE), store)
    settings = ["training.num_steps=2", "sampler.classes_per_batch=4", "evaluation.baselines=false"]
    train_flow.fn("shop", "smoke", settings, store=store)
    for name in ("shop", "other"):
        index_flow.fn(name, "shop", "shop", store=store)
    return store


@pytest.fixture
def store(made):
    """That store, in which no index is scheduled."""
    yield made
    for name in names_to_refresh(made):
        storage.delete(storage.join(made, "indexes", name, "refresh.json"))


@pytest.fixture
def dml(store, monkeypatch, capsys):
    """One verb on that store with --json: its exit status, and what it printed."""
    monkeypatch.setenv("PREFECT_API_URL", "")

    def call(*arguments: str) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["dml", *arguments, "--store", store, "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        answer = json.loads(capsys.readouterr().out)
        require_declared_type(arguments, answer)
        return done.value.code or 0, answer

    return call


def test_a_schedule_is_stored_beside_the_index_which_fills_in_the_rest(store):
    refresh = ask_refresh(store, "shop", cron=NIGHTLY)
    assert (refresh.model, refresh.dataset) == ("shop", "shop")
    assert storage.read_json(storage.join(store, "indexes", "shop", "refresh.json")) == refresh.model_dump()
    assert find_refresh(store, "shop") == refresh
    assert names_to_refresh(store) == ["shop"]
    end_refresh(store, "shop")
    assert find_refresh(store, "shop") is None
    assert names_to_refresh(store) == []


def test_an_index_is_refreshed_from_its_schedules_model_and_dataset_else_from_its_own(store):
    assert refreshed_from(store, "shop") == ("shop", "shop")
    ask_refresh(store, "shop", cron=NIGHTLY, model="shop/1", dataset="bigger")
    assert refreshed_from(store, "shop") == ("shop/1", "bigger")


def test_only_an_index_can_be_scheduled_and_by_its_name(store):
    with pytest.raises(MissingArtifact, match="nowhere"):
        ask_refresh(store, "nowhere", cron=NIGHTLY)
    version = storage.current(storage.join(store, "indexes", "shop"))
    with pytest.raises(InvalidSetting, match="Say shop"):
        ask_refresh(store, f"shop@{version}", cron=NIGHTLY)


def test_a_file_that_says_something_else_is_named(store):
    uri = storage.join(store, "indexes", "shop", "refresh.json")
    for content in (b"{", b"[]", b'{"cron": "0 3 * * *"}', b"\xff"):
        storage.write_bytes(uri, content)
        with pytest.raises(InvalidData, match=r"refresh\.json must say when"):
            find_refresh(store, "shop")


@pytest.mark.parametrize(
    ("cron", "timezone"),
    [
        ("at night", "UTC"),
        ("* * * * * *", "UTC"),  # seconds: nobody means it
        ("0 0 30 2 *", "UTC"),  # the thirtieth of February
        ("61 * * * *", "UTC"),
        ("H 3 * * *", "UTC"),
        ("", "UTC"),
        (NIGHTLY, "Mars/Olympus"),
    ],
)
def test_a_time_that_never_comes_is_refused(cron, timezone):
    with pytest.raises(InvalidSetting, match="--cron must have five fields"):
        next_refresh(cron, timezone)


def test_the_next_time_is_in_the_requested_time_zone():
    coming = next_refresh(NIGHTLY, "Asia/Kolkata")
    assert coming.isoformat(timespec="minutes").endswith("T03:00+05:30")


def test_all_scheduled_indexes_are_refreshed_and_one_that_fails_does_not_stop_the_others(store):
    ask_refresh(store, "other", cron=NIGHTLY, dataset="gone")
    ask_refresh(store, "shop", cron=NIGHTLY)
    with pytest.raises(
        RefreshFailed, match=r"1 of 2 were not refreshed: other \(MissingArtifact: .*'gone'"
    ) as error:
        refresh_flow.fn(store=store)
    assert [ref.name for ref in error.value.refreshed] == ["shop"]
    assert refresh_flow.fn(["shop"], store)[0].name == "shop"


def test_a_source_that_lost_more_than_half_does_not_become_the_index(store):
    before = find_index(store, "shop")
    rest = IngestConfig(name="shop", source="glyphs:classes=8,per_class=2")
    try:
        with pytest.raises(InvalidData, match=r"50% of the 40 items .*shop.* has 16.*--model shop"):
            reindex_flow.fn("shop", source=rest, store=store)
        assert find_index(store, "shop") == before
    finally:
        ingest_flow.fn(rest.model_copy(update={"source": SOURCE}), store)
    half = rest.model_copy(update={"source": "glyphs:classes=8,per_class=3"})
    assert reindex_flow.fn("shop", source=half, store=store).rows == 24
    whole = half.model_copy(update={"source": SOURCE})
    assert reindex_flow.fn("shop", source=whole, store=store).version == before.version


def test_a_damaged_index_is_named_and_keeps_no_other_from_being_refreshed(store):
    for name in ("shop", "other"):
        ask_refresh(store, name, cron=NIGHTLY)
    manifest = storage.join(find_index(store, "other").uri, "manifest.json")
    whole = storage.read_bytes(manifest)
    storage.write_bytes(manifest, b"{")
    try:
        with pytest.raises(RefreshFailed, match=r"1 of 2 were not refreshed: other \(CorruptArtifact"):
            refresh_flow.fn(store=store)
    finally:
        storage.write_bytes(manifest, whole)


def test_a_scheduled_run_skips_an_index_that_is_no_longer_scheduled(store):
    assert refresh_flow.fn(["shop"], store) == []


def test_the_verbs_schedule_list_refresh_and_unschedule(dml):
    assert dml("reindex") == (0, {"refreshed": [], "failed": {}})
    status, asked = dml("schedule", "shop", "--cron", NIGHTLY)
    assert status == 0
    assert asked["prefect"] is None
    assert [(row["index"], row["cron"], row["model"], row["dataset"]) for row in asked["schedules"]] == [
        ("shop", NIGHTLY, "shop", "shop")
    ]
    status, listed = dml("indexes")
    assert {ref["name"]: ref["refresh"] for ref in listed["indexes"]} == {
        "other": None,
        "shop": {"cron": NIGHTLY, "timezone": "UTC", "model": "shop", "dataset": "shop"},
    }
    status, done = dml("reindex")
    assert (status, [ref["name"] for ref in done["refreshed"]]) == (0, ["shop"])
    assert dml("schedule", "shop", "--off") == (0, {"schedules": [], "prefect": None, "damaged": {}})
    status, done = dml("reindex", "other")
    assert (status, [ref["name"] for ref in done["refreshed"]]) == (0, ["other"])
    counts = ("added", "changed", "relabelled", "removed", "unchanged")
    assert [done["refreshed"][0]["ingested"][name] for name in counts] == [0, 0, 0, 0, 40]


def test_no_schedule_is_sent_to_a_stack_that_is_still_starting():
    with pytest.raises(Unreachable, match="has printed its addresses"):
        prefect_api_url("http://127.0.0.1:1/api")


@pytest.mark.parametrize(
    "content", [b"{", b'{"cron": "soon", "timezone": "UTC", "model": "shop", "dataset": "shop"}']
)
def test_one_damaged_schedule_keeps_no_other_from_being_listed_sent_or_refreshed(dml, store, content):
    dml("schedule", "shop", "--cron", NIGHTLY)
    storage.write_bytes(storage.join(store, "indexes", "other", "refresh.json"), content)
    status, listed = dml("schedule")
    assert (status, [row["index"] for row in listed["schedules"]]) == (2, ["shop"])
    assert "dml schedule other --cron" in listed["damaged"]["other"]
    status, actual = dml("indexes")
    assert (status, {ref["name"] for ref in actual["indexes"]}) == (0, {"shop", "other"})
    asking, damaged = read_schedules(store)
    assert (list(asking), list(damaged)) == (["shop"], ["other"])
    assert dml("schedule", "other", "--off")[0] == 0


def test_a_failed_refresh_is_exit_status_1_and_names_the_index(dml):
    dml("schedule", "shop", "--cron", NIGHTLY, "--dataset", "gone")
    status, done = dml("reindex")
    assert status == 1
    assert "'gone'" in done["failed"]["shop"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shop"], "--off"),
        (["shop", "--cron", NIGHTLY, "--off"], "not both"),
        (["--cron", NIGHTLY], "need the name of an index"),
        (["shop", "--cron", "soon"], "'soon'"),
        (["nowhere", "--cron", NIGHTLY], "nowhere"),
        (["nowhere", "--off"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_clear_message_and_status_2(dml, arguments, says):
    status, answer = dml("schedule", *arguments)
    assert status == 2
    assert says in answer["error"]
