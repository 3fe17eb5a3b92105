"""Deep metric learning end to end; each folder is one room of the house the README draws."""


def __getattr__(name: str) -> str:
    """`dml.__version__`, looked up only when asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dml-platform")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
