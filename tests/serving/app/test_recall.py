"""The recall gauge says what comparing with everything would have answered."""

import time

import anyio
import numpy as np
import pytest

from dml.retrieval.answer import Answer
from dml.retrieval.gallery import Gallery
from dml.serving.app.factory import create_app
from dml.serving.app.indexes import OpenIndexes
from dml.serving.app.metrics import Metrics
from dml.serving.app.recall import RecallSampler, Sampled, recall_of
from tests.embedding.parts import png
from tests.serving.app.parts import NAME, image, make_store, publish, running

SEARCH = f"/v1/indexes/{NAME}/search"


@pytest.mark.parametrize("where", [[], ["sold"], ["year > 2100"]], ids=["all", "a filter", "no match"])
def test_answers_of_the_exact_search_have_recall_1_and_others_less(tmp_path, where):
    store, *_ = make_store(tmp_path)
    gallery = Gallery.open(store, NAME)
    gallery.enrol("ann", images=[png(900)], attributes={"sold": True, "year": 2000})
    gallery.forget("00002.png")
    gallery.close()
    indexes = OpenIndexes(store)
    indexes.refresh()
    with indexes.hold(NAME) as opened:
        (vector,) = opened.index.vectors_of(["00004.png"])
        found = opened.index.search(
            vector[None], 10, embedder=opened.embedder, where=where, refuse_absent=False
        ).answers[0]
        assert recall_of(Sampled(opened, vector, 10, where, found)) == (len(found), len(found))
        if found:
            worse = [*found[:6], *(Answer("x", -1.0, None, None, {}, 0) for _ in found[6:])]
            assert recall_of(Sampled(opened, vector, 10, where, worse)) == (6, len(found))
            exact = opened.index.exact_similarities(vector, 10, where=where)
            np.testing.assert_allclose(exact, [answer.similarity for answer in found], atol=1e-6)


def test_live_queries_are_measured_in_the_background(settings):
    app = create_app(settings.model_copy(update={"recall_share": 1.0}))

    async def asking():
        async with running(app) as client:
            for seed in range(5):
                await client.post(SEARCH, json={"queries": [image(seed)], "filter": "sold"})
            with anyio.fail_after(10):
                while 'dml_recall_queries_total{index="shelves"} 5.0' not in (text := await metrics(client)):
                    await anyio.sleep(0.05)
            return text

    async def metrics(client):
        return (await client.get("/metrics")).text

    measured = anyio.run(asking)
    assert 'dml_recall{index="shelves"} 1.0' in measured
    assert 'dml_recall_low{index="shelves"} 0.9' in measured


def test_a_new_version_begins_without_the_recall_of_the_former_one(tmp_path):
    store, dataset, _ = make_store(tmp_path)
    indexes, metrics = OpenIndexes(store), Metrics()
    recall = RecallSampler(1.0, metrics)

    def gauge():
        return metrics.registry.get_sample_value("dml_recall", {"index": NAME})

    def take_what_is_published():
        indexes.refresh()
        recall.follow({name: opened.ref.version for name, opened in indexes.opened.items()})

    def measure(opened):
        (vector,) = opened.index.vectors_of(["00004.png"])
        found = opened.index.search(vector[None], 5, embedder=opened.embedder).answers[0]
        recall.offer(Sampled(opened, vector, 5, [], found))

    take_what_is_published()
    with indexes.hold(NAME) as former:
        measure(former)
        deadline = time.monotonic() + 10
        while gauge() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gauge() == 1.0
        publish(store, dataset, seed=2)
        take_what_is_published()
        assert gauge() is None
        measure(former)  # for a request that began before the switch
        recall.close()
    assert gauge() is None
