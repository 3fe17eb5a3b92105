"""Markdown descriptions of a model, a version and a run, for MLflow's pages."""

from collections.abc import Mapping

from dml.refs import PackageRef
from dml.reports import against_pixels

_SHOWN = ("recall_at_1", "map_at_r", "nmi")


def version_description(
    model_uri: str,
    package: PackageRef,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
) -> str:
    """A version's training dataset, metrics, and code to load it.

    Args:
        model_uri: MLflow's URI of the version, `models:/NAME/VERSION`.
        package: the version's package.
        metrics: metrics on the test split.
        baselines: metrics by name, as `EvaluationReport.baseline_metrics`.
    """
    dataset = package.dataset
    lines = [f"Images in, embeddings of {package.dim} dimensions and unit length out."]
    if dataset is not None:
        lines[0] += (
            f" Trained on `{dataset}`: {dataset.rows:,} images of {dataset.classes:,} "
            "classes, those of the split `train`."
        )
    if package.source:
        lines[0] += f" From `{package.source}`, not trained here."
        lines[0] += f" License of its weights: {package.license}." if package.license else ""
    shown = [name for name in _SHOWN if name in metrics]
    if shown:
        rows = {**baselines, "**pretrained**" if package.source else "**trained**": metrics}
        table = ["| on the test split | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        for name, values in rows.items():
            cells = (f"{values[key]:.4f}" if key in values else "" for key in shown)
            table.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("\n".join(table))
    if verdict := against_pixels(shown[0] if shown else "", metrics, baselines):
        lines.append(f"It is {verdict}.")
    lines.append(f"Package `{package.version}`. Load it:\n\n{_loading_example(model_uri)}")
    return "\n\n".join(lines)


def model_description(name: str) -> str:
    """A registered model, independent of its versions."""
    return (
        f"The versions of `{name}`. The alias `champion` is the version in use: it passed the gate, as every "
        "champion must (`dml models` lists versions, `dml rollback model` restores a former champion).\n\n"
        + _loading_example(f"models:/{name}@champion")
    )


def _loading_example(model_uri: str) -> str:
    return f"""```python
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model("{model_uri}")
images = pd.DataFrame({{"image": [open("query.png", "rb").read()]}})
embeddings = model.predict(images)  # (N, D) float32
```"""
