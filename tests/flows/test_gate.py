"""A gate that asks for confidence compares newcomer and champion query by query before it decides."""

import re

import pytest

from dml.config import IngestConfig
from flows.ingest import ingest_flow
from flows.train import train_flow


@pytest.mark.slow
def test_a_newcomer_is_compared_with_the_champion_on_the_same_queries(tmp_path):
    store = str(tmp_path / "store")
    ingest_flow.fn(IngestConfig(name="shop", source="glyphs:classes=24,per_class=6"), store)
    settings = ["evaluation.baselines=false", "evaluation.nmi=false", "gate.confidence=0.95"]
    untrained = ["training.num_steps=1", "optimizer.learning_rate=1e-9"]
    first = train_flow.fn("shop", "smoke", [*settings, *untrained], store=store)
    assert first.model.promoted

    again = train_flow.fn("shop", "smoke", [*settings, *untrained, "seed=5"], store=store)
    assert "queries of 12 classes, p " in again.model.reason
    match = re.search(r"gain ([+-][\d.]+) \[.*p ([\d.]+)", again.model.reason)
    gain = again.evaluation.metrics["recall_at_1"] - first.evaluation.metrics["recall_at_1"]
    assert float(match[1]) == round(gain, 4)
    assert again.model.promoted == (gain > 0 and float(match[2]) <= 0.05)
