"""Corrections of a dataset by people: labels set and items removed, which later ingests of its source keep.

`datasets/NAME/corrections.json` holds them with who made them and when.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dml import storage
from dml.data.sources.sample import Sample
from dml.labels import normalized
from dml.reports import ItemCorrection

CORRECTIONS = "corrections.json"


@dataclass(frozen=True)
class Corrections:
    """Corrections by id."""

    by_id: Mapping[str, ItemCorrection] = field(default_factory=dict)

    def apply(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
        """The samples with their corrected labels, without removed ones, and a note about them.

        Where the source has a split, a sample comes to the side of its class.
        """
        others = [sample for sample in samples if sample.id not in self.by_id]
        split_of = {normalized(sample.label): sample.split for sample in others} if self.by_id else {}
        result, relabelled, removed = [], 0, 0
        for sample in samples:
            correction = self.by_id.get(sample.id)
            if correction is None:
                result.append(sample)
            elif correction.label is None:
                removed += 1
            else:
                relabelled += 1
                split = split_of.setdefault(correction.label, sample.split)
                result.append(sample._replace(label=correction.label, split=split))
        if not relabelled and not removed:
            return result, []
        return result, [
            f"corrections are applied, {relabelled} labels and {removed} items removed: `dml corrections` "
            "lists them"
        ]

    def keep_splits(self, samples: Sequence[Sample], known: Mapping[str, str]) -> list[Sample]:
        """Samples of classes that only corrected items have, with the split that these classes had before.

        The source gives those classes no split; that of their items can be either.
        """
        of_source = {normalized(sample.label) for sample in samples if sample.id not in self.by_id}
        return [
            sample
            if sample.label in of_source or sample.id not in self.by_id
            else sample._replace(split=known.get(sample.label, sample.split))
            for sample in samples
        ]


def read_corrections(store: str, name: str) -> Corrections:
    """A dataset's corrections; raises CorruptArtifact if the list is damaged."""
    content = storage.read_checked(_uri(store, name))
    return _parsed(content["items"] if content else [])


def change_corrections(
    store: str, name: str, change: Callable[[dict[str, ItemCorrection]], dict[str, ItemCorrection]]
) -> None:
    """Replace a dataset's corrections by id; concurrent changes are all applied."""
    storage.update_checked(
        _uri(store, name),
        lambda content: {
            "items": [
                correction.model_dump()
                for _, correction in sorted(
                    change(dict(_parsed((content or {}).get("items", [])).by_id)).items()
                )
            ]
        },
    )


def erase_corrections(store: str, name: str, ids: Iterable[str]) -> None:
    """Remove the corrections of some ids, if there are any."""
    erased = set(ids)
    if erased & read_corrections(store, name).by_id.keys():
        change_corrections(store, name, lambda known: {k: v for k, v in known.items() if k not in erased})


def _parsed(items: Iterable[Mapping[str, str | None]]) -> Corrections:
    parsed = (ItemCorrection.model_validate(item) for item in items)
    return Corrections({correction.id: correction for correction in parsed})


def _uri(store: str, name: str) -> str:
    return storage.join(storage.named_folder(store, "datasets", name), CORRECTIONS)
