# %% [markdown]
# # From images to search results
#
# Each cell is a stage. No server is needed: MLflow writes into the store, and Prefect's flows run as plain
# functions. The commands of `dml` call the same flows. `DML_EXAMPLE_STEPS` sets the number of training steps.

# %%
import os
import tempfile
from pathlib import Path

from dml.config import parse_ingest
from dml.data.dataset import read_images, read_rows
from dml.presets import experiment
from dml.serving.answers import draw
from dml.serving.searcher import Searcher
from flows.index import index_flow
from flows.ingest import ingest_flow
from flows.policy import run
from flows.train import train_flow

store = os.environ.get("DML_STORE") or tempfile.mkdtemp(prefix="dml-example-")
steps = int(os.environ.get("DML_EXAMPLE_STEPS", "200"))

# %% [markdown]
# ## Ingest
# Drawn characters; for your images give a folder with one folder per class. Half of the classes are the test
# split.

# %%
source = parse_ingest({"name": "shop", "source": "glyphs:classes=40,per_class=8"})
dataset = run(ingest_flow, source, store).dataset
print(f"{dataset.name}@{dataset.version}: {dataset.splits}")

# %% [markdown]
# ## Train, evaluate, register
# The model becomes champion if it is better than the champion. The test classes were never trained on.

# %%
chosen = experiment("smoke").overridden([f"training.num_steps={steps}", "loss.kind=proxy_anchor"])
report = run(train_flow, "shop", config=chosen, store=store)
for row in report.evaluation.table():
    print(row)
print(f"model {report.model} is {report.model.alias}: {report.model.reason}")

# %% [markdown]
# ## Index

# %%
index = run(index_flow, "shop", "shop", "shop", store=store)
print(f"{index.rows} items, {index.factory}, recall@10 {index.recall:.3f}")

# %% [markdown]
# ## Search
# The query is the first test image; the bytes of any image file are a query.

# %%
row = read_rows(dataset).column("split").to_pylist().index("test")
(query,) = read_images(dataset, [row])
searcher = Searcher.open(store, "shop")
(result,) = searcher.search([query], k=5)
for answer in result.answers:
    print(answer.id, answer.label, round(answer.similarity, 3))

# %%
picture = Path(store, "answers.png")
picture.write_bytes(draw(result, query, searcher.gallery))
print(f"query and answers: {picture}")
