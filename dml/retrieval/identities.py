"""Answers grouped by identity: a probe in, the most similar identities out.

An identity is a label; an item without one is an identity by itself, called by its id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting
from dml.reports import IdentityHit, ImageHit
from dml.retrieval.answer import Answer
from dml.retrieval.arguments import checked_k
from dml.retrieval.filters import In, Where
from dml.retrieval.search import Index

GROUPINGS = ("best", "mean", "all")
FIRST_K = 16
"""Answers of the first search; four times as many each time that they are too few."""
_MIN_CANDIDATES = 64


@dataclass(frozen=True)
class IdentityAnswers:
    """An identity, and its images among the answers of a search, the most similar first."""

    identity: str
    answers: list[Answer]

    @property
    def similarity(self) -> float:
        """That of its most similar image."""
        return self.answers[0].similarity

    def values(self, attribute: str) -> frozenset[Any]:
        """The values of an attribute that its images have; a missing value is none."""
        values = (answer.attributes.get(attribute) for answer in self.answers)
        return frozenset(value for value in values if value not in (None, ""))

    def hit(self, grouping: str) -> IdentityHit:
        """The identity as a result."""
        similarity, listed = self.similarity, self.answers[:1]
        if grouping == "mean":
            similarity = sum(answer.similarity for answer in self.answers) / len(self.answers)
        if grouping == "all":
            listed = self.answers
        return IdentityHit(
            identity=self.identity,
            similarity=round(similarity, 6),
            images=[
                ImageHit(id=answer.id, similarity=round(answer.similarity, 6), attributes=answer.attributes)
                for answer in listed
            ],
        )


def group_by_identity(answers: Sequence[Answer]) -> dict[tuple[str, str], IdentityAnswers]:
    """Identities in the order of their most similar image; the keys are (label, "") or ("", id), since the id
    of an item without a label may be spelt like another item's label.

    Args:
        answers: of one query, by descending similarity.
    """
    groups: dict[tuple[str, str], IdentityAnswers] = {}
    for answer in answers:
        key = (answer.label, "") if answer.label else ("", answer.id)
        groups.setdefault(key, IdentityAnswers(key[0] or key[1], [])).answers.append(answer)
    return groups


def search_identities(
    index: Index,
    probe: NDArray[np.float32],
    k: int,
    *,
    embedder: str,
    where: Where = None,
    grouping: str = "best",
    exclude_id: str | None = None,
) -> list[IdentityHit]:
    """The k most similar identities.

    Args:
        index: open.
        probe: (D,) float32, unit length.
        k: identities.
        embedder: fingerprint of what embedded the probe.
        where: a filter that their images must satisfy.
        grouping: "best": an identity is as similar as its most similar image, which alone is listed;
            "mean": as the mean of its images, of the identities whose best image is among the 64 first or
            four times k; "all": as its most similar image, and all its images are listed.
        exclude_id: an item that is no answer, such as the probe itself.

    Raises:
        InvalidSetting: k below 1, another grouping, or a filter that does not fit.
    """
    k = checked_k(k)
    if grouping not in GROUPINGS:
        raise InvalidSetting(f"grouping must be one of {', '.join(GROUPINGS)}; got {grouping!r}.")
    num_candidates = max(4 * k, _MIN_CANDIDATES) if grouping == "mean" else k

    def search(num_answers: int, where: Where) -> list[Answer]:
        exclude_ids = None if exclude_id is None else [exclude_id]
        result = index.search(
            probe[None], num_answers, embedder=embedder, where=where, exclude_ids=exclude_ids
        )
        return result.answers[0]

    num_answers = max(4 * num_candidates, FIRST_K)
    while True:
        answers = search(num_answers, where)
        groups = group_by_identity(answers)
        if len(groups) >= num_candidates or len(answers) < num_answers:
            break
        num_answers *= 4
    candidates = list(groups)[:num_candidates]
    labels = tuple(label for label, _ in candidates if label)
    if grouping != "best" and labels:
        of_candidates = In(column="label", values=labels)
        groups |= group_by_identity(search(index.num_rows, [of_candidates, *_filters(where)]))
    hits = [groups[identity].hit(grouping) for identity in candidates]
    return sorted(hits, key=lambda hit: -hit.similarity)[:k]


def _filters(where: Where) -> list[Any]:
    if where is None:
        return []
    return list(where) if isinstance(where, Sequence) and not isinstance(where, str) else [where]
