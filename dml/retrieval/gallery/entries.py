"""What a write adds to the log, made inside its transaction: what is asked for and the state in, entries out.

Another process may have written since a caller asked. So what exists is looked up in the transaction.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dml.errors import InvalidSetting, MissingArtifact
from dml.labels import normalized
from dml.retrieval.gallery.live import LiveIndex
from dml.retrieval.gallery.log import Entry, Log, timestamp
from dml.retrieval.gallery.state import State
from dml.retrieval.search import Index

MakeEntries = Callable[[State, Log], Sequence[tuple[Entry, bytes | None]]]
"""Returns the entries to write, each with its image, if it has one; none where all is so already."""


def enrol_entries(
    entries: Sequence[Entry], images: Sequence[bytes], check: Callable[[Index], None] | None = None
) -> MakeEntries:
    """Those of the entries that are not in the gallery already.

    Args:
        entries: of items that are enrolled.
        images: of the items, in the same order; none: they are vectors.
        check: raises where the gallery, with all that is written before, does not allow them.
    """

    def make(state: State, log: Log) -> list[tuple[Entry, bytes | None]]:
        if check is not None:
            check(_live_now(state, log))
        files: Sequence[bytes | None] = images or [None] * len(entries)
        each = zip(entries, files, strict=True)
        return [(entry, image) for entry, image in each if not _is_enrolled(entry, state, log)]

    return make


def update_entries(id_: str, attributes: Mapping[str, Any], label: str | None, who: str) -> MakeEntries:
    """An item with other attributes, or another label; None: it keeps its label."""

    def make(state: State, log: Log) -> list[tuple[Entry, bytes | None]]:
        columns = _columns_now(id_, state, log)
        former = log.entry(id_)
        own = former if former is not None and former.op != "forget" else None
        entry = Entry(
            "update" if own is None else own.op,
            id_,
            columns["label"] if label is None else label,
            {**{name: columns[name] for name in state.ref.embeddings.items.attributes}, **attributes},
            "" if own is None else own.content,
            who,
            timestamp(),
        )
        return [(entry, None)]

    return make


def forget_entries(ids: Sequence[str], identity: str | None, who: str) -> MakeEntries:
    """The items with these ids, or with an identity, are forgotten."""

    def make(state: State, log: Log) -> list[tuple[Entry, bytes | None]]:
        forgotten = ids
        if identity is not None:
            labels = dict.fromkeys([identity, normalized(identity)])  # as it is written, and as it is kept
            forgotten = [id_ for label in labels if label for id_ in state.live.ids_with_label(label)]
            if not forgotten:
                raise MissingArtifact(
                    f"An identity must have an item in gallery {state.ref.name}; {identity!r} has none."
                )
        for id_ in forgotten:
            _columns_now(id_, state, log)
        when = timestamp()
        return [(Entry("forget", id_, who=who, time=when), None) for id_ in dict.fromkeys(forgotten)]

    return make


def no_item(id_: str, name: str) -> MissingArtifact:
    """The error that says that a gallery does not have an item."""
    return MissingArtifact(f"An item must be in gallery {name}; {id_!r} is not, or was forgotten.")


def _live_now(state: State, log: Log) -> LiveIndex:
    """The gallery as of the open transaction, with what others who share it have written."""
    pending = log.entries_after(state.live.revision, state.embedder)
    return state.after(pending, state.live.revision + 1).live if pending else state.live


def _columns_now(id_: str, state: State, log: Log) -> dict[str, Any]:
    """The columns of an item as of the open transaction, which may have changed it already.

    Raises:
        MissingArtifact: there is none.
    """
    entry = log.entry(id_)
    columns = state.live.item(id_)
    if entry is not None and entry.revision > state.live.revision:
        (row,) = state.index.find_rows([id_])
        columns = None if entry.op == "forget" else state.columns_of(entry, row)
    if columns is None:
        raise no_item(id_, state.ref.name)
    return columns


def _is_enrolled(entry: Entry, state: State, log: Log) -> bool:
    """Whether an item is enrolled so already.

    Raises:
        InvalidSetting: another item has its id.
    """
    former = log.entry(entry.id)
    (row,) = state.index.find_rows([entry.id])
    names = state.ref.embeddings.items.attributes
    if former is not None and former.op == "enrol":
        content: str | None = former.content
        before: Mapping[str, Any] = {"label": former.label, **former.attributes}
    elif row is not None and (former is None or former.op == "update"):
        columns = (
            state.index.items_at(np.array([row]))[0] if former is None else state.columns_of(former, row)
        )
        content, before = columns.get("sha256"), columns
    else:
        return False
    if content != entry.content:
        raise InvalidSetting(
            f"An id must name one image or vector; {entry.id!r} of gallery {state.ref.name} has other "
            "content. Forget it first, or enrol under another id."
        )
    now = {"label": entry.label, **entry.attributes}
    differ = [name for name in ("label", *names) if now.get(name) != before.get(name)]
    if differ:
        raise InvalidSetting(
            f"What is enrolled again must be as it was; {entry.id!r} of gallery {state.ref.name} has another "
            f"{differ[0]}. Change it: update({entry.id!r}, ...)."
        )
    return True
