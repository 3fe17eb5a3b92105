"""Forgotten items of a dataset or of imported vectors, which later ingests and imports leave out.

`datasets/NAME/forgotten.json`, or `vectors/NAME/forgotten.json`, holds the SHA-256 of their ids, so that the
file lists no names.
"""

from collections.abc import Iterable

from dml import storage

FORGOTTEN = "forgotten.json"


def digest_of_id(id_: str) -> str:
    """The digest that is stored for an id."""
    return storage.digest_of_bytes(id_.encode("utf-8", errors="surrogatepass"))


def forgotten_ids(store: str, name: str, *, folder: str = "datasets") -> frozenset[str]:
    """The digests of the forgotten ids of a dataset, or of what another folder of the store has by its name.

    Raises:
        CorruptArtifact: the list is damaged.
    """
    content = storage.read_checked(_uri(store, name, folder))
    return frozenset(content["ids"] if content else [])


def add_forgotten(store: str, name: str, ids: Iterable[str], *, folder: str = "datasets") -> None:
    """Add ids to the forgotten items."""
    added = {digest_of_id(id_) for id_ in ids}
    storage.update_checked(
        _uri(store, name, folder),
        lambda content: {"ids": sorted(added.union(content["ids"] if content else []))},
    )


def _uri(store: str, name: str, folder: str) -> str:
    return storage.join(storage.named_folder(store, folder, name), FORGOTTEN)
