"""Whether a source still is the source of the former version: what it no longer lists, and the ids it gives.

An ingest takes an image that is not listed for removed, and finds forgotten and corrected items by their
ids. Both would be wrong for a folder that cannot be listed, and for a source that gives all images new ids.
"""

from collections.abc import Sequence, Set

from dml.data.sources.sample import BROKEN_LINK, UNREADABLE_FOLDER, Problem
from dml.errors import IncompatibleArtifact, InvalidData

_MOST_OUTER_FOLDERS = 8


def require_listed(former_ids: Sequence[str], ids: Set[str], problems: Sequence[Problem]) -> None:
    """Raise InvalidData where images of the former version are below a folder that cannot be listed.

    Args:
        former_ids: of the former version's rows.
        ids: of all entries that the source lists.
        problems: entries of the source that cannot become a row.
    """
    hidden = [p for p in problems if p.reason in (UNREADABLE_FOLDER, BROKEN_LINK)]
    # An id is a path below the outer folders that contain all images, a problem has the whole path.
    folder_of = {f"{tail}/": problem for problem in hidden for tail in _tails(problem.locator)}
    missing = [id_ for id_ in former_ids if id_ not in ids] if folder_of else []
    above = (next((folder_of[head] for head in _heads(id_) if head in folder_of), None) for id_ in missing)
    lost = [problem for problem in above if problem is not None]
    if lost:
        raise InvalidData(
            f"Folders with images of the former version must stay readable; {len(lost)} images are below "
            f"such as are not: {lost[0].locator!a}, {lost[0].reason}, {lost[0].detail}. Make them "
            "readable or mount their disk; or, if their images are to be removed, remove the folders. "
            "Nothing was published."
        )


def require_same_ids(former_ids: Sequence[str], ids: Set[str], marked: str) -> None:
    """Raise IncompatibleArtifact where most paths have only lost or got outer folders.

    Args:
        former_ids: of the former version's rows.
        ids: of all entries that the source lists.
        marked: what is known by its ids, for the message.
    """
    former = set(former_ids)
    moved = {id_: tail for id_ in ids - former for tail in _tails(id_)[1:] if tail in former}
    moved |= {tail: id_ for id_ in former.difference(ids) for tail in _tails(id_)[1:] if tail in ids}
    if len(moved) > len(former.intersection(ids)):
        example = min(moved.items())
        raise IncompatibleArtifact(
            f"Images must keep their ids, since {marked} are known by them; {len(moved)} would have another, "
            f"such as {example[0]!r} for {example[1]!r}. Ids are paths below the outermost folder that has "
            "several: ingest the folder that the former ids begin in, or give another --name. Nothing was "
            "published."
        )


def require_same_rows(num_changed: int, uri: str, marked: str) -> None:
    """Raise IncompatibleArtifact if images changed whose ids are numbers of rows: rows may have moved.

    Args:
        num_changed: how many rows of the former version have another image now.
        uri: the source.
        marked: what is known by its ids, for the message.
    """
    if num_changed:
        raise IncompatibleArtifact(
            f"Images must keep their ids, since {marked} are known by them; the ids of {uri} are numbers of "
            f"rows, of which {num_changed} have another image than before. Append new rows, or write a "
            "column id and give another --name. Nothing was published."
        )


def _tails(path: str) -> list[str]:
    """A path, and what remains of it without its first folders."""
    parts = path.split("/")
    return ["/".join(parts[depth:]) for depth in range(min(len(parts), _MOST_OUTER_FOLDERS))]


def _heads(path: str) -> list[str]:
    """The folders above a path, each with its slash."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
