"""A published index together with what was enrolled and forgotten since: durable, and found at once."""

from dml.retrieval.gallery.erase import (
    erasing,
    forget_items,
    forget_logged,
    forgotten_ids,
    has_entries,
    ids_of_items,
    ids_of_table,
    mark_erased,
    require_nothing_forgotten,
    version_and_forgotten,
    versions_holding,
)
from dml.retrieval.gallery.fold import collect_changes, publish_index, rollback_index
from dml.retrieval.gallery.gallery import Change, Enrolment, Gallery, GallerySize, Item
from dml.retrieval.gallery.live import LiveIndex

__all__ = [
    "Change",
    "Enrolment",
    "Gallery",
    "GallerySize",
    "Item",
    "LiveIndex",
    "collect_changes",
    "erasing",
    "forget_items",
    "forget_logged",
    "forgotten_ids",
    "has_entries",
    "ids_of_items",
    "ids_of_table",
    "mark_erased",
    "publish_index",
    "require_nothing_forgotten",
    "rollback_index",
    "version_and_forgotten",
    "versions_holding",
]
