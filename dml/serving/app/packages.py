"""The packages that a service has loaded: a URI in, the package out, by torch or by ONNX Runtime."""

import threading
from collections.abc import Callable
from typing import Literal
from weakref import WeakValueDictionary

from dml.models.package import Package, load_package
from dml.refs import IndexRef, PackageRef


class Packages:
    """Packages by URI: loaded once, whichever indexes use them, dropped with the last of these.

    Args:
        encoder: what computes their networks.
    """

    def __init__(self, encoder: Literal["torch", "onnx"] = "torch") -> None:
        self._loaded: WeakValueDictionary[str, Package] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._load: Callable[[str], Package] = load_package if encoder == "torch" else _load_exported

    def load(self, uri: str) -> Package:
        """The package at a URI."""
        with self._lock:
            package = self._loaded.get(uri)
            if package is None:
                package = self._loaded[uri] = self._load(uri)
            return package

    def of(self, ref: IndexRef) -> Package | None:
        """The package that embedded an index; None: it is not in the store."""
        embedder = ref.embeddings.embedder
        return self.load(embedder.uri) if isinstance(embedder, PackageRef) else None

    @property
    def num_loaded(self) -> int:
        return len(self._loaded)


def _load_exported(uri: str) -> Package:
    from dml.models.exported import exported

    return exported(load_package(uri, device="cpu"))
