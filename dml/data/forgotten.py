"""The items of a dataset that must not come back when its source is read again.

`datasets/NAME/forgotten.json` holds the SHA-256 of their ids: enough to know one again, and no list of names.
"""

from collections.abc import Iterable

from dml import storage

FORGOTTEN = "forgotten.json"


def digest_of_id(id_: str) -> str:
    """What is kept of an id."""
    return storage.digest_of_bytes(id_.encode("utf-8", errors="surrogatepass"))


def forgotten_ids(store: str, name: str) -> frozenset[str]:
    """The digests of a dataset's forgotten ids; raises CorruptArtifact where their list is damaged."""
    held = storage.read_checked(_uri(store, name))
    return frozenset(held["ids"] if held else [])


def keep_forgotten(store: str, name: str, ids: Iterable[str]) -> None:
    """Add ids to those that must not come back."""
    added = {digest_of_id(id_) for id_ in ids}
    storage.update_checked(
        _uri(store, name), lambda held: {"ids": sorted(added.union(held["ids"] if held else []))}
    )


def _uri(store: str, name: str) -> str:
    return storage.join(storage.named_folder(store, "datasets", name), FORGOTTEN)
