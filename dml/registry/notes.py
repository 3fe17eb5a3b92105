"""What MLflow's pages say of a model, a version and a run, in Markdown, for somebody who sees only them."""

from collections.abc import Mapping

from dml.refs import PackageRef
from dml.reports import against_pixels

_SHOWN = ("recall_at_1", "map_at_r", "nmi")


def note_of(
    loads: str,
    package: PackageRef,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
) -> str:
    """What a version was trained on, how good it is, and how it is loaded.

    Args:
        loads: what MLflow loads it by, `models:/NAME/VERSION`.
        package: what is in it.
        metrics: how it does on the test split.
        baselines: name to metrics, as `EvaluationReport.baseline_metrics`.
    """
    dataset = package.dataset
    lines = [f"Images in, embeddings of {package.dim} dimensions and unit length out."]
    if dataset is not None:
        lines[0] += (
            f" Trained on `{dataset.name}@{dataset.version}`: {dataset.rows:,} images of {dataset.classes:,} "
            "classes, those of the split `train`."
        )
    shown = [name for name in _SHOWN if name in metrics]
    if shown:
        rows = {**baselines, "**trained**": metrics}
        table = ["| on the test split | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        for name, values in rows.items():
            cells = (f"{values[key]:.4f}" if key in values else "" for key in shown)
            table.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("\n".join(table))
    if verdict := against_pixels(shown[0] if shown else "", metrics, baselines):
        lines.append(f"It is {verdict}.")
    lines.append(f"Package `{package.version}`. Load it:\n\n{_loading(loads)}")
    return "\n\n".join(lines)


def note_of_model(name: str) -> str:
    """What a registered model is, whichever of its versions is used."""
    return (
        f"The models of `{name}`. The alias `champion` is the version in use: it passed the gate, as every "
        "new one must (`dml models` shows them, `dml rollback model` takes one back).\n\n"
        + _loading(f"models:/{name}@champion")
    )


def _loading(loads: str) -> str:
    return f"""```python
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model("{loads}")
images = pd.DataFrame({{"image": [open("query.png", "rb").read()]}})
embeddings = model.predict(images)  # (N, D) float32
```"""
