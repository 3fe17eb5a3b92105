"""Are thumbnails a good first stage? `python -m benchmarks.thumbnails`.

Small thumbnails of all images, compared first; the best 100 or 1,000 are compared by their embeddings in
full. The vector of a thumbnail is its pixels, less the mean image and of unit length, 8 bits each; or its
embedding, after enlarging it again. Beside them the codes that `dml index --first-stage auto` tries, made of
the embeddings. recall@10 is against exact search by the embeddings, mate@1 that of the first answer
after comparing in full. Omniglot: alphabets that the conv4 trained here has not seen. CARS: an untuned
SqueezeNet. Both are read from DML_TEST_DATA.
"""

import argparse
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.thresholds import ARCHIVE, TRAIN_ALPHABETS, read_omniglot, trained
from dml.retrieval.first_stage import FirstStage, compared_in_full
from dml.retrieval.first_stage_choice import SHORTLISTS, choose_first_stage
from dml.retrieval.held_out import HeldOut, K
from dml.retrieval.vectors import FlatVectors, write_vectors

NUM_QUERIES, TIMED = 400, 32
CARS, WEIGHTS = "cars196_trainhalf_96px.zip", "weights/squeezenet1_1_imagenet_features.safetensors"
CARS_SIDE = 96
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """Pictures (N, C, H, W) in [0, 1], their classes (N,), and what embeds them (n, C, H, W) -> (n, D)."""

    pictures: Tensor
    classes: NDArray[np.int64]
    embed: Callable[[Tensor], Tensor]

    def embedded(self, pictures: Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            parts = [nn.functional.normalize(self.embed(part)) for part in pictures.split(500)]
        return torch.cat(parts).numpy()

    def thumbnails(self, side: int) -> Tensor:
        return nn.functional.interpolate(self.pictures, (side, side), mode="area")

    def pixels(self, side: int, *, grey: bool) -> NDArray[np.float32]:
        small = self.thumbnails(side)
        flat = (small.mean(1, keepdim=True) if grey else small).flatten(1)
        return nn.functional.normalize(flat - flat.mean(0)).numpy()

    def of_enlarged(self, side: int) -> NDArray[np.float32]:
        """The embeddings of thumbnails."""
        size = self.pictures.shape[-2:]
        parts = [
            self.embedded(nn.functional.interpolate(part, size, mode="bilinear"))
            for part in self.thumbnails(side).split(500)
        ]
        return np.concatenate(parts)


def omniglot(archive: Path, steps: int) -> Images:
    pictures, characters, alphabets = read_omniglot(archive)
    held_out = alphabets % 30 >= TRAIN_ALPHABETS
    encoder = trained(pictures[~held_out], characters[~held_out], steps)
    chosen = held_out & (alphabets < 30)  # not turned
    shown = torch.from_numpy((pictures[chosen] + 1) / 2)
    return Images(shown, characters[chosen], lambda part: encoder(2 * part - 1))


def cars(archive: Path, weights: Path) -> Images:
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1

    with zipfile.ZipFile(archive) as content:
        labels = content.read("CARS196/labels.csv").decode().splitlines()[1:]
        images = [
            Image.open(io.BytesIO(content.read(f"CARS196/{line.split(',')[0]}"))).convert("RGB")
            for line in labels
        ]
    size = (CARS_SIDE, CARS_SIDE)
    pictures = np.stack([np.asarray(image.resize(size)) for image in images])
    classes = np.array([int(line.split(",")[1]) for line in labels])
    network = squeezenet1_1()
    network.load_state_dict(load_file(weights), strict=False)
    features = network.features.eval()
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
    return Images(
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
        classes,
        lambda part: features((part - mean) / deviation).mean((2, 3)),
    )


def report(title: str, images: Images) -> None:
    vectors = images.embedded(images.pictures)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), NUM_QUERIES, replace=False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors"
        with path.open("wb") as file:
            write_vectors(
                file.write, iter([vectors]), rows=len(vectors), dim=vectors.shape[1], dtype="float32"
            )
        flat = FlatVectors(str(path))
        nearest = flat.search(vectors[rows], K + 1)[1]
        held_out = HeldOut.of(rows, vectors[rows], nearest, images.classes)
        print(f"\n{title}: {len(vectors)} images, {vectors.shape[1]} dimensions, {NUM_QUERIES} queries")
        print(f"exact: mate@1 {held_out.mate_at_1(nearest):.3f}")
        print(
            f"{'first stage':22}{'bytes':>6}" + "".join(f"{f'recall@10 of {n}':>18}" for n in SHORTLISTS),
            end="",
        )
        print(f"{f'mate@1 of {SHORTLISTS[0]}':>16}{'scan us':>9}")
        is_colour = images.pictures.shape[1] == 3
        stages = {f"grey pixels {side} x {side}": (images.pixels(side, grey=True), "SQ8") for side in (8, 16)}
        if is_colour:
            stages["colour pixels 16 x 16"] = images.pixels(16, grey=False), "SQ8"
        stages["embedded 16 x 16"] = images.of_enlarged(16), "SQfp16"
        for name, (small, factory) in stages.items():
            print_row(name, *measured(flat, held_out, np.ascontiguousarray(small), factory))
        trials = choose_first_stage(flat, held_out, target=0.95)[1].trials
        for kind in dict.fromkeys(trial.kind for trial in trials):
            of_kind = {trial.shortlist: trial for trial in trials if trial.kind == kind}
            first = of_kind[SHORTLISTS[0]]
            recalls = [of_kind[n].recall if n in of_kind else None for n in SHORTLISTS]
            print_row(kind, first.bytes_per_vector, recalls, first.mate_at_1, first.scan_us)


def measured(
    flat: FlatVectors, held_out: HeldOut, small: NDArray[np.float32], factory: str
) -> tuple[int, list[float | None], float | None, float]:
    index = faiss.index_factory(small.shape[1], factory, faiss.METRIC_L2)
    index.train(small)
    index.add(small)
    stage, queries = FirstStage(index), small[held_out.rows]
    recalls: list[float | None] = []
    mates = []
    for number in SHORTLISTS:
        candidates = stage.candidates(queries, number)
        nearest = compared_in_full(flat, held_out.queries, K + 1, candidates)[1]
        recalls.append(held_out.recall(nearest))
        mates.append(held_out.mate_at_1(nearest))
    taken = []
    for place in range(TIMED):
        start = time.thread_time()
        stage.candidates(queries[place : place + 1], SHORTLISTS[0])
        taken.append(1e6 * (time.thread_time() - start))
    return stage.bytes_per_vector, recalls, mates[0], float(np.median(taken))


def print_row(
    name: str, size: int, recalls: list[float | None], mate_at_1: float | None, scan_us: float
) -> None:
    cells = "".join(f"{'-' if recall is None else format(recall, '.3f'):>18}" for recall in recalls)
    mates = "-" if mate_at_1 is None else f"{mate_at_1:.3f}"
    print(f"{name:22}{size:6}{cells}{mates:>16}{scan_us:9.0f}", flush=True)


def main() -> None:
    data = Path(os.environ.get("DML_TEST_DATA", "."))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--omniglot", type=Path, default=data / ARCHIVE)
    parser.add_argument("--steps", type=int, default=400, help="of training on Omniglot")
    parser.add_argument("--cars", type=Path, default=data / CARS)
    parser.add_argument("--weights", type=Path, default=data / WEIGHTS)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if arguments.cars.exists() and arguments.weights.exists():
        report("CARS, an untuned SqueezeNet", cars(arguments.cars, arguments.weights))
    if arguments.omniglot.exists():
        report("Omniglot, unseen alphabets", omniglot(arguments.omniglot, arguments.steps))


if __name__ == "__main__":
    main()
