"""Deep metric learning end to end; each folder is one room of the house the README draws."""


def __getattr__(name: str) -> str:
    """`dml.__version__`, looked up only when asked for; of a folder that is not installed, "0+unknown"."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("dml-platform")
        except PackageNotFoundError:
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
