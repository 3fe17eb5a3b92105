"""Corrections of a published dataset by a person: a new version by a delta, never a change of an old one.

A correction is recorded with who and when, and later ingests of the same source keep it. The images are
copied from the former version, so the source is not needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dml import storage
from dml.data.chosen_split import choose_split
from dml.data.corrected import Corrections, change_corrections, read_corrections
from dml.data.dataset import find_dataset
from dml.data.delta import make_plan
from dml.data.former import FormerVersion, find_former
from dml.data.former_rows import FormerRows, read_former_rows
from dml.data.fragment import make_fragment
from dml.data.known_files import CurrentFile, KnownFile
from dml.data.publication import publish_version, refuse_forgotten
from dml.data.quarantine import QUARANTINE, read_quarantine
from dml.data.sources.sample import MAX_BYTES, Listing, Sample, Stamp
from dml.data.version import finish_version, make_ref
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.labels import checked_label
from dml.names import split_version
from dml.refs import DatasetRef
from dml.reports import ItemCorrection

_TRIES = 5
_MAX_NAMED = 5
Change = Callable[[dict[str, ItemCorrection]], dict[str, ItemCorrection]]


def correct_label(store: str, dataset: str, id: str, label: str, *, who: str) -> DatasetRef:
    """Give an item another label, in a new version of its dataset, which becomes the current one.

    Args:
        store: the store's URI.
        dataset: NAME.
        id: the item's.
        label: the class it belongs to; one that no item has makes a new class.
        who: recorded with the correction.

    Returns:
        The new version; the current one if the item has this label already.

    Raises:
        MissingArtifact: there is no such dataset or item.
        InvalidSetting: no source could have such a label, or `dataset` names a version.
        InvalidData: the dataset cannot be split with this label.
        IncompatibleArtifact: other processes kept publishing versions of the dataset.
    """
    return correct_labels(store, dataset, {id: label}, who=who)


def correct_labels(store: str, dataset: str, labels: Mapping[str, str], *, who: str) -> DatasetRef:
    """`correct_label` for several items, by id, in one new version."""
    checked = {id_: checked_label("A label", label) for id_, label in labels.items()}
    return _correct(store, dataset, checked, who)


def remove_item(store: str, dataset: str, id: str, *, who: str) -> DatasetRef:
    """Leave an item out of a new version of its dataset, and of those that later ingests make.

    Former versions keep it, and so do the files that they share with the new one; `dml forget` erases.

    Args:
        store: the store's URI.
        dataset: NAME.
        id: the item's.
        who: recorded with the correction.

    Returns:
        The new version.

    Raises:
        MissingArtifact, IncompatibleArtifact: as `correct_label`.
        InvalidSetting: no item would remain, or `dataset` names a version.
    """
    return remove_items(store, dataset, [id], who=who)


def remove_items(store: str, dataset: str, ids: list[str], *, who: str) -> DatasetRef:
    """`remove_item` for several items, in one new version."""
    return _correct(store, dataset, dict.fromkeys(ids), who)


def list_corrections(store: str, dataset: str) -> list[ItemCorrection]:
    """The corrections that hold for a dataset, by id; raises MissingArtifact if there is no such dataset."""
    ref = find_dataset(store, dataset)
    return [correction for _, correction in sorted(read_corrections(store, ref.name).by_id.items())]


def revoke_correction(store: str, dataset: str, id: str) -> DatasetRef:
    """Take a correction back. A label is again what it was; a removed item returns with the next ingest.

    Args:
        store: the store's URI.
        dataset: NAME.
        id: the item's.

    Returns:
        The current version.

    Raises:
        MissingArtifact: there is no correction of this item.
        IncompatibleArtifact: as `correct_label`.
    """
    name = _name_of(dataset)
    known = read_corrections(store, find_dataset(store, name).name).by_id
    if id not in known:
        raise MissingArtifact(
            f"An item must have been corrected to take that back; {id!r} of {name} was not. "
            f"`dml corrections {name}` lists {len(known)}."
        )
    correction = known[id]

    def drop(corrections: dict[str, ItemCorrection]) -> dict[str, ItemCorrection]:
        return {other: each for other, each in corrections.items() if other != id}

    if correction.label is None:
        change_corrections(store, name, drop)
        return find_dataset(store, name)
    back = correction.model_copy(update={"label": correction.former_label})
    return _until_published(store, name, lambda former, rows: ({id: back}, drop))


def _correct(store: str, dataset: str, labels: Mapping[str, str | None], who: str) -> DatasetRef:
    name, when = _name_of(dataset), datetime.now(UTC).isoformat(timespec="seconds")
    if not labels:
        raise InvalidSetting("Name at least one item to correct; got none. `dml search` shows ids.")
    if not who.strip():
        raise InvalidSetting("A correction must say who made it; got a blank name. Give one: --who NAME.")

    def corrections(former: DatasetRef, rows: FormerRows) -> tuple[dict[str, ItemCorrection], Change]:
        missing = sorted(labels.keys() - rows.position_of.keys())
        if missing:
            raise MissingArtifact(
                f"Items to correct must be in {former}; {missing[:_MAX_NAMED]} are not. Give ids as `dml "
                "search` shows them; what is in quarantine is corrected in the source. Nothing was changed."
            )
        known = read_corrections(store, name).by_id
        new = {
            id_: ItemCorrection(
                id=id_,
                label=label,
                former_label=known[id_].former_label
                if id_ in known
                else rows.columns["label"][rows.position_of[id_]],
                who=who.strip(),
                when=when,
            )
            for id_, label in labels.items()
            if label is None or rows.columns["label"][rows.position_of[id_]] != label
        }
        return new, lambda corrections: {**corrections, **new}

    return _until_published(store, name, corrections)


def _name_of(dataset: str) -> str:
    name, version = split_version(dataset, "dataset")
    if version is not None:
        raise InvalidSetting(
            f"Corrections hold for the current version and later ones; got {dataset}. Give the name: {name}."
        )
    return name


Corrected = Callable[[DatasetRef, FormerRows], tuple[dict[str, ItemCorrection], Change]]


def _until_published(store: str, name: str, corrected: Corrected) -> DatasetRef:
    """Make the version; start again if another process published one meanwhile."""
    find_dataset(store, name)
    for _ in range(_TRIES):
        if (ref := _publish(store, name, corrected)) is not None:
            return ref
    raise IncompatibleArtifact(
        f"A correction must be made between two ingests; other processes kept publishing versions of {name}. "
        "Nothing was changed; start again."
    )


def _publish(store: str, name: str, corrected: Corrected) -> DatasetRef | None:
    """The new version; None if another version became current meanwhile."""
    parent = storage.named_folder(store, "datasets", name)
    former = find_former(store, name)
    assert former.ref is not None
    assert former.config is not None
    assert former.split is not None
    rows = _intact_rows(former.ref)
    new, change = corrected(former.ref, rows)
    if not new:
        return find_dataset(store, name)
    samples = _corrected_samples(former, rows, new)
    split = choose_split(samples, None, former.split, former)
    samples = [sample._replace(split=split.split_of_class[sample.label]) for sample in samples]
    manifest = storage.read_manifest(former.ref.uri)
    ingest = {key: manifest[key] for key in ("ingest", "split")}
    with storage.staged(storage.join(parent, "correction")) as staged:
        folder = storage.make_folder(storage.join(staged, storage.SHARED))
        known = {i: KnownFile("", sha256) for i, sha256 in zip(rows.ids, rows.columns["sha256"], strict=True)}
        files = [CurrentFile("", is_settled=True)] * len(samples)
        attributes, config = former.ref.attributes, former.config
        plan = make_plan(_NoSource(), samples, files, attributes, rows, known, folder, config)
        try:
            results = [make_fragment(job) for job in plan.jobs]
        except MissingArtifact:
            if storage.current(parent) != former.ref.version:  # `dml forget` has written the files anew
                return None
            raise
        problems = read_quarantine(storage.join(former.ref.uri, QUARANTINE))
        written = finish_version(config, plan, results, dict(attributes), problems)
        with storage.locked_pointer(parent) as pointer:
            if pointer.version != former.ref.version:
                return None
            ref = make_ref(parent, name, written)
            refuse_forgotten(store, ref, written, "current")
            change_corrections(store, name, change)  # first, so that no ingest undoes what is published
            remembered = pointer.remembered or ingest
            outcome = publish_version(staged, ref, written, split.remembered, remembered, is_current=False)
            refuse_forgotten(store, ref, written, outcome)
            pointer.move(ref.version)
    return find_dataset(store, str(ref))


def _intact_rows(ref: DatasetRef) -> FormerRows:
    rows = read_former_rows(ref, thorough=False)
    if rows.damaged:
        raise CorruptArtifact(
            f"A dataset must be intact to be corrected; {len(rows.damaged)} files of {ref} are damaged. Run "
            f"`dml verify {ref.name} --repair`."
        )
    return rows


def _corrected_samples(
    former: FormerVersion, rows: FormerRows, new: Mapping[str, ItemCorrection]
) -> list[Sample]:
    """The samples of the new version, sorted by class and id."""
    assert former.ref is not None
    columns = {name: rows.columns[name] for name in ("label", "split", *rows.attributes)}
    samples = [
        Sample(
            id_,
            "",
            columns["label"][row],
            columns["split"][row],
            {name: columns[name][row] for name in rows.attributes},
        )
        for row, id_ in enumerate(rows.ids)
    ]
    corrected, _ = Corrections(new).apply(samples)
    if not corrected:
        raise InvalidSetting(
            f"A dataset must keep at least one item; {former.ref} has no others. Remove it: "
            f"dml rm dataset {former.ref.name}."
        )
    return sorted(corrected, key=lambda sample: (sample.label, sample.id))


@dataclass(frozen=True)
class _NoSource:
    """The source of a version whose images are all in the former one."""

    def list(self) -> Listing:
        raise AssertionError

    def stamps(self, locators: object) -> "tuple[Stamp | None, ...]":
        raise AssertionError

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        raise AssertionError(f"{locator} is in the former version")
