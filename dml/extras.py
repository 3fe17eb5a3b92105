"""Which part of the installation a missing package belongs to: `pip install 'dml-platform[EXTRA]'`."""

import sys

_PACKAGES = {
    "index": (
        *(
            "boto3",
            "botocore",
            "faiss",
            "httpx",
            "huggingface_hub",
            "lark",
            "PIL",
            "pyarrow",
            "pydantic",
            "pydantic_core",
            "safetensors",
            "timm",
        ),
        *("torchvision", "yaml"),
    ),
    "train": (
        *("loky", "matplotlib", "mlflow", "pandas", "ray", "requests", "scipy", "sklearn", "sqlalchemy"),
        "threadpoolctl",
    ),
    "flows": ("prefect",),
    "serve": ("fastapi", "prometheus_client", "starlette", "uvicorn"),
    "faces": ("cv2",),
    "telemetry": ("opentelemetry",),
    "onnx": ("onnx", "onnxruntime"),
    "huggingface": ("transformers",),
    "hdf5": ("h5py",),
    "milvus": ("pymilvus", "grpc"),
    "postgres": ("asyncpg", "psycopg2"),
    "all": (
        "rich",
        "typer",
    ),  # index brings them; but without them there is no verb, and nobody knows which is meant
}
EXTRA_OF = {package: extra for extra, packages in _PACKAGES.items() for package in packages}
"""A package's name, as it is imported, to the extra to install for it."""


def what_to_install(error: ModuleNotFoundError) -> str | None:
    """The one line for a verb whose extra is not installed; None: the module is none of an extra's.

    Args:
        error: what an import raised.

    Example:
        >>> print(what_to_install(ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")))
        This needs the package psycopg2; it is not installed. Do: pip install 'dml-platform[postgres]'.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF or sys.modules.get(package) is not None:
        return None
    return (
        f"This needs the package {package}; it is not installed. "
        f"Do: pip install 'dml-platform[{EXTRA_OF[package]}]'."
    )
