"""What an index was made from leads to the page of its own model, also after a switch of models."""

import pytest

from dml.refs import ModelRef
from dml.serving.ancestry import ancestry
from tests.serving.app.parts import make_store, publish


def registered(index, version):
    return ModelRef(name="shelves", version=version, package=index.embeddings.embedder)


@pytest.mark.parametrize(
    ("tracking", "pages"),
    [
        ("http://user:secret@127.0.0.1:5000", ["http://127.0.0.1:5000/#/models/shelves/versions/{}"] * 2),
        ("sqlite:///mlflow.db", [None, None]),
    ],
    ids=["a server", "a file"],
)
def test_each_version_is_linked_with_the_page_of_the_model_that_embedded_it(
    tmp_path, monkeypatch, tracking, pages
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    store, dataset, first = make_store(tmp_path)
    second = publish(store, dataset, seed=2)
    models = [registered(second, 2), registered(first, 1)]
    for index, version, page in zip((first, second), (1, 2), pages, strict=True):
        urls = {step.kind: step.url for step in ancestry(store, index, {}, models)}
        assert urls.pop("package") == (page and page.format(version))
        assert set(urls.values()) == {None}
    unregistered = {step.kind: step.url for step in ancestry(store, first, {}, models[:1])}
    assert unregistered["package"] is None, "not that of the model which is in use now"
