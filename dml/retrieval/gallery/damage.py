"""What is damaged of a gallery's log: its name in, damaged files out."""

from contextlib import closing, suppress

from dml import storage
from dml.errors import CorruptArtifact, DmlError, IncompatibleArtifact
from dml.retrieval.gallery.fold import LOG_FILE, folder_of, log_path, open_log
from dml.retrieval.gallery.segments import FOLDER, Segments, missing_numbers
from dml.retrieval.index import published_index

_MOST_NAMED = 10


def damaged_files_of_log(store: str, name: str) -> list[str] | None:
    """Read every byte of a gallery's log, in a store on S3 of its segments.

    Args:
        store: the store's URI.
        name: of the gallery.

    Returns:
        Files relative to its folder, each with what is wrong; None: there is no log, and need not be one.

    Raises:
        GalleryUnavailable: it cannot be reached.
    """
    covered = 0
    with suppress(DmlError):  # a damaged index is named by who checks that
        published = published_index(store, name)
        covered = 0 if published is None else published.covers_revision
    if storage.is_remote(store):
        return _of_segments(Segments(folder_of(store, name)), covered)
    return _of_file(store, name, covered)


def _of_file(store: str, name: str, covered: int) -> list[str] | None:
    if not log_path(store, name).exists():
        return [f"{LOG_FILE} (is missing)"] if covered else None
    try:
        log = open_log(store, name)
        if log is None:  # another process is making it
            return None
        with closing(log):
            log.check()
            return _behind(LOG_FILE, log.revision, covered)
    except (CorruptArtifact, IncompatibleArtifact):
        return [LOG_FILE]


def _of_segments(segments: Segments, covered: int) -> list[str] | None:
    listed = segments.list_from(0)
    if not listed:
        return [f"{FOLDER} (is missing)"] if covered else None
    listed += segments.list_merged(0)  # after those that were emptied
    holding = [each for each in listed if not each.is_empty]
    damaged, logs, reached = [], set(), 0
    for each, segment in zip(holding, segments.read_whole(holding), strict=True):
        if isinstance(segment, DmlError):
            damaged.append(segments.path_of(each.name))
        elif segment is not None:
            logs.add(segment.log)
            reached = max(reached, segment.revision)
    missing = missing_numbers(listed)
    damaged += [f"{FOLDER} (number {number} is missing)" for number in missing[:_MOST_NAMED]]
    if len(missing) > _MOST_NAMED:
        damaged.append(f"{FOLDER} ({len(missing) - _MOST_NAMED} more are missing)")
    if len(logs) > 1:
        damaged.append(f"{FOLDER} (of {len(logs)} logs)")
    return damaged or _behind(FOLDER, reached, covered)


def _behind(place: str, reached: int, covered: int) -> list[str]:
    """Whether a log has what the published version of its index was built of."""
    return [f"{place} (ends at revision {reached} of {covered})"] if reached < covered else []
