"""Forgotten items of a dataset, which later ingests of its source leave out.

`datasets/NAME/forgotten.json` holds the SHA-256 of their ids, so that the file lists no names.
"""

from collections.abc import Iterable

from dml import storage

FORGOTTEN = "forgotten.json"


def digest_of_id(id_: str) -> str:
    """The digest that is stored for an id."""
    return storage.digest_of_bytes(id_.encode("utf-8", errors="surrogatepass"))


def forgotten_ids(store: str, name: str) -> frozenset[str]:
    """The digests of a dataset's forgotten ids; raises CorruptArtifact if the list is damaged."""
    content = storage.read_checked(_uri(store, name))
    return frozenset(content["ids"] if content else [])


def add_forgotten(store: str, name: str, ids: Iterable[str]) -> None:
    """Add ids to a dataset's forgotten items."""
    added = {digest_of_id(id_) for id_ in ids}
    storage.update_checked(
        _uri(store, name), lambda content: {"ids": sorted(added.union(content["ids"] if content else []))}
    )


def _uri(store: str, name: str) -> str:
    return storage.join(storage.named_folder(store, "datasets", name), FORGOTTEN)
