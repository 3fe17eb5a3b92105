"""Do thresholds keep their FPIR? `python -m benchmarks.thresholds [--embeddings FILE] [--draws 12]`.

Of characters that are not enrolled (Omniglot's, in four rotations, of alphabets that the encoder trained here
has not seen), and of people who are not (synthetic, in populations that look alike): how many of their probes
reach a threshold that was set with others for an FPIR of 1 %? Beside each other the fixed 0.4, the quantile
of impostor pairs, the Pareto tail of `dml.retrieval.tails`, a Gumbel distribution of the maxima in the
smallest gallery, and the quantile of the maxima at the gallery's own size. Then with a scope as gallery.
Without Omniglot (DML_TEST_DATA, or --omniglot ZIP) the synthetic part runs alone.
"""

import argparse
import io
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dml.errors import InvalidData
from dml.losses import MultiSimilarity
from dml.retrieval.impostors import ImpostorPool, impostor_scores
from dml.retrieval.tails import fit_tail, pair_rate

FPIR = 0.01
ARCHIVE = "omniglot_background.zip"
TRAIN_ALPHABETS, SIDE, DIM = 12, 28, 64


@dataclass(frozen=True)
class Gallery:
    """Vectors (N, D) of unit length, whose they are, and the group of look-alikes that each belongs to."""

    vectors: NDArray[np.float32]
    identities: NDArray[np.int64]
    groups: NDArray[np.int64]

    def of(self, identities: NDArray[np.int64], images: int | None = None) -> "Gallery":
        """Those of some identities; at most so many images of each."""
        rows = np.flatnonzero(np.isin(self.identities, identities))
        if images is not None:
            order = rows[np.argsort(self.identities[rows], kind="stable")]
            first = np.flatnonzero(np.diff(self.identities[order], prepend=-1))
            turn = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
            rows = order[turn < images]
        return Gallery(self.vectors[rows], self.identities[rows], self.groups[rows])


def scores_of(probes: Gallery, gallery: Gallery):
    return impostor_scores(probes.vectors, probes.identities, gallery.vectors.__getitem__, gallery.identities)


def maxima(probes: Gallery, gallery: Gallery) -> NDArray[np.float32]:
    return np.concatenate(
        [
            (probes.vectors[i : i + 1000] @ gallery.vectors.T).max(1)
            for i in range(0, len(probes.vectors), 1000)
        ]
    )


def gumbel(values: NDArray[np.float32], size: int, wanted: int) -> float:
    """The threshold at `wanted` enrolled from maxima among `size`, from a Gumbel's moments."""
    scale = float(values.std()) * 6**0.5 / np.pi
    location = float(values.mean()) - 0.5772156649 * scale + scale * np.log(wanted / size)
    return location - scale * np.log(-np.log1p(-FPIR))


def thresholds_of(calibrating: Gallery, enrolled: Gallery, smallest: Gallery) -> dict[str, float]:
    """By each method."""
    scores = scores_of(calibrating, enrolled)
    num = len(scores.enrolled)
    rate = pair_rate(num, FPIR)
    kept = np.sort(scores.similarities)[::-1]
    return {
        "fixed 0.4": 0.4,
        "pair quantile": float(kept[min(int(rate * scores.num_pairs), len(kept) - 1)]),
        "Pareto tail": fit_tail(scores.pairs()).threshold(num, FPIR),
        "Gumbel of the smallest gallery": gumbel(
            maxima(calibrating, smallest), len(np.unique(smallest.identities)), num
        ),
        "direct maxima": float(np.quantile(scores.maxima, 1 - FPIR)),
    }


def report(title: str, rows: dict[str, list[float]], columns: list[str]) -> None:
    print(f"\n{title}: FPIR in % where 1 % was asked for, mean (deviation)")
    print("".join(f"{name:>18}" for name in ["", *columns]))
    for name, values in rows.items():
        cells = "".join(f"{100 * np.mean(v):>12.2f} ({100 * np.std(v):4.2f})" for v in values)
        print(f"{name:>32}{cells}", flush=True)


def whole_galleries(people: Gallery, sizes: tuple[int, ...], others: int, draws: int, title: str) -> None:
    rows: dict[str, list[list[float]]] = {}
    for draw in range(draws):
        calibrating, tested, enrolled = drawn(people, others, max(sizes), draw)
        smallest = people.of(enrolled[: min(sizes)], images=1)
        for column, size in enumerate(sizes):
            gallery = people.of(enrolled[:size], images=1)
            best = maxima(people.of(tested), gallery)
            for name, threshold in thresholds_of(people.of(calibrating), gallery, smallest).items():
                cells = rows.setdefault(name, [[] for _ in sizes])
                cells[column].append(float((best >= threshold).mean()))
    report(title, rows, [f"N = {size}" for size in sizes])


def scopes(people: Gallery, size: int, others: int, draws: int, title: str) -> None:
    """The gallery is the probe's own group: thresholds of everybody, of the group, of all groups pooled."""
    rows: dict[str, list[list[float]]] = {}
    per_scope: list[int] = []
    for draw in range(draws):
        calibrating, tested, enrolled = drawn(people, others, size, draw)
        everybody = fit_tail(scores_of(people.of(calibrating), people.of(enrolled, images=1)).pairs())
        whole = everybody.threshold(size, FPIR)
        group_of = dict(zip(people.identities.tolist(), people.groups.tolist(), strict=True))
        parts = {}
        for group in np.unique(people.groups).tolist():
            inside = [
                np.array([i for i in chosen if group_of[int(i)] == group])
                for chosen in (calibrating, tested, enrolled)
            ]
            if min(map(len, inside)) >= 2:
                parts[group] = [
                    people.of(ids, images=images) for ids, images in zip(inside, (None, None, 1), strict=True)
                ]
        scores = {group: scores_of(part[0], part[2]) for group, part in parts.items()}
        pool = ImpostorPool(np.empty(0, dtype=np.int64))
        for found in scores.values():
            pool.add(found)
        pooled = fit_tail(pool.pairs())
        taken: dict[str, list[NDArray[np.bool_]]] = {}
        for group, (_, probes, gallery) in parts.items():
            num = len(np.unique(gallery.identities))
            per_scope.append(num)
            best = maxima(probes, gallery)
            try:
                own = fit_tail(scores[group].pairs())
            except InvalidData:  # fewer than 20 pairs
                own = pooled
            shared = pooled.threshold(num, FPIR)
            for name, threshold in {
                "threshold for N, of everybody": everybody.threshold(num, FPIR),
                "the scope's own tail": own.threshold(num, FPIR),
                "all scopes' tails pooled": shared,
                "... not below the gallery's": max(shared, whole),
                "pooled, not below its own": max(shared, own.threshold(num, FPIR)),
            }.items():
                taken.setdefault(name, []).append(best >= threshold)
        for name, values in taken.items():
            rows.setdefault(name, [[]])[0].append(float(np.concatenate(values).mean()))
    report(f"{title}, {np.mean(per_scope):.1f} identities in each", rows, ["own scope"])


def drawn(people: Gallery, others: int, size: int, seed: int) -> list[NDArray[np.int64]]:
    """Identities to calibrate with, to test with, and to enrol: none twice."""
    order = np.random.default_rng(seed).permutation(np.unique(people.identities))
    return [order[:others], order[others : 2 * others], order[2 * others : 2 * others + size]]


def synthetic(identities: int, images: int, *, populations: int = 500, dim: int = 48) -> Gallery:
    """People of populations that look alike; images of one person have a cosine of about 0.7."""
    random = np.random.default_rng(0)
    groups = np.arange(identities) % populations
    people = (
        0.5 * random.normal(size=(populations, dim))[groups] + random.normal(size=(identities, dim)) * 0.866
    )
    rows = np.repeat(np.arange(identities), images)
    vectors = people[rows] + 0.65 * random.normal(size=(len(rows), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Gallery(vectors.astype(np.float32), rows, groups[rows])


def omniglot(archive: Path, steps: int) -> Gallery:
    """Embeddings of the alphabets that the encoder did not see, four rotations of each character."""
    pictures, characters, alphabets = read_omniglot(archive)
    held_out = alphabets % 30 >= TRAIN_ALPHABETS
    encoder = trained(pictures[~held_out], characters[~held_out], steps)
    with torch.no_grad():
        parts = [encoder(part) for part in torch.from_numpy(pictures[held_out]).split(2000)]
    vectors = nn.functional.normalize(torch.cat(parts)).numpy()
    return Gallery(vectors, characters[held_out], alphabets[held_out])


def read_omniglot(archive: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    with zipfile.ZipFile(archive) as content:
        names = sorted(name for name in content.namelist() if name.endswith(".png"))
        images = [
            Image.open(io.BytesIO(content.read(name))).convert("L").resize((SIDE, SIDE)) for name in names
        ]
    pictures = np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in images])[:, None]
    characters = np.unique([name.rsplit("/", 1)[0] for name in names], return_inverse=True)[1]
    alphabets = np.unique([name.split("/")[-3] for name in names], return_inverse=True)[1]
    turned = [np.rot90(pictures, turns, (2, 3)) for turns in range(4)]
    numbers = [characters + turns * (characters.max() + 1) for turns in range(4)]
    groups = [alphabets + turns * 30 for turns in range(4)]
    return np.ascontiguousarray(np.concatenate(turned)), np.concatenate(numbers), np.concatenate(groups)


def trained(pictures: NDArray[np.float32], labels: NDArray[np.int64], steps: int) -> nn.Module:
    """A conv4 with multi-similarity loss on batches of 32 classes, 4 of each."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, DIM))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    loss, random = MultiSimilarity(), np.random.default_rng(0)
    rows_of = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    for _ in range(steps):
        chosen = random.choice(list(rows_of), 32, replace=False)
        batch = np.concatenate([random.choice(rows_of[label], 4, replace=False) for label in chosen])
        embeddings = nn.functional.normalize(encoder(torch.from_numpy(pictures[batch])))
        optimizer.zero_grad()
        loss(embeddings, torch.from_numpy(labels[batch])).backward()
        optimizer.step()
        schedule.step()
    return encoder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--omniglot", type=Path, help=f"default: {ARCHIVE} in DML_TEST_DATA")
    parser.add_argument("--embeddings", type=Path, help=".npz file: read if it is there, else written")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--draws", type=int, default=12, help="of who is enrolled")
    parser.add_argument("--identities", type=int, default=60_000, help="synthetic")
    arguments = parser.parse_args()
    start = time.perf_counter()
    archive = arguments.omniglot or Path(os.environ.get("DML_TEST_DATA", ".")) / ARCHIVE
    if arguments.embeddings is not None and arguments.embeddings.exists():
        characters = Gallery(**np.load(arguments.embeddings))
    elif archive.exists():
        characters = omniglot(archive, arguments.steps)
    else:
        print(f"Without {archive} there is no Omniglot; name it with --omniglot.")
        characters = None
    if characters is not None:
        if arguments.embeddings is not None and not arguments.embeddings.exists():
            np.savez(arguments.embeddings, **vars(characters))
        whole_galleries(characters, (50, 200, 600), 500, arguments.draws, "Omniglot")
        scopes(characters, 600, 800, arguments.draws, "Omniglot, the probe's own alphabet")
    people = synthetic(arguments.identities, 2, populations=max(arguments.identities // 120, 2))
    others = arguments.identities // 12
    sizes = tuple(size for size in (100, 1_000, 10_000, 50_000) if size + 2 * others <= arguments.identities)
    whole_galleries(people, sizes, others, 1, "synthetic people")
    scopes(people, max(sizes), others, 1, "synthetic, the probe's own population")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
