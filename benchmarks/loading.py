"""How fast training images are made: `python -m benchmarks.loading [--source FOLDER-OR-ZIP]`.

Batches of 128 images, decoded and augmented as for training, by the threads of one process and by processes.
One thread times the number of cores is what the cores could do. Without a source: photographs of 500 x 375
pixels drawn here, cropped to 224.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dml.config import AugmentationConfig, IngestConfig, PreprocessingConfig
from dml.data.batches import TrainingBatches
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.data.mapped import open_mapped
from dml.data.sampling import PKBatchSampler, Stream

CLASSES, PER_CLASS = 40, 10
AUGMENTATION = AugmentationConfig(random_resized_crop=(0.2, 1.0), horizontal_flip=True)


def photographs(folder: Path) -> str:
    """JPEGs with the detail of photographs: 50 KB each."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES * PER_CLASS):
        blobs = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375))
        grain = Image.effect_noise(blobs.size, 40).filter(ImageFilter.GaussianBlur(1)).convert("RGB")
        target = folder / f"class-{number % CLASSES:02d}" / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(blobs, grain, 0.3).save(target, quality=90)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="a folder or zip of labelled images")
    parser.add_argument("--pixels", type=int, default=224, help="of the cropped image's side")
    parser.add_argument("--seconds", type=float, default=10.0, help="that each line takes, at least")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.source or photographs(Path(folder) / "images")
        dataset = ingest(IngestConfig(name="loading", source=source, num_workers=1), f"{folder}/store")
        rows = read_rows(dataset, split="train", columns=["class_id"])
        class_ids = np.unique(rows["class_id"].to_numpy(), return_inverse=True)[1]
        size = {"resize": arguments.pixels, "crop": arguments.pixels}
        print(f"{len(rows)} images, {arguments.pixels} pixels; {platform.processor()}, {cores} cores")
        variants = [(1, 0), (8, 0), *((0, n) for n in (2, 4, 8, 16) if n <= max(cores, 2))]
        for num_threads, num_processes in variants:
            sampler = PKBatchSampler(
                class_ids, classes_per_batch=16, samples_per_class=8, stream=Stream(100_000, seed=0)
            )
            batches = TrainingBatches(
                open_mapped(dataset),
                positions=rows["position"].to_numpy(),
                class_ids=class_ids,
                sampler=sampler,
                preprocessing=PreprocessingConfig(color="RGB", **size),
                augmentation=AUGMENTATION,
                seed=0,
                num_threads=num_threads or None,
                num_processes=num_processes,
            )
            made = iter(batches)
            for _ in range(8):  # the processes have begun, and what was made meanwhile is gone
                next(made)
            began, images = time.perf_counter(), 0
            while time.perf_counter() - began < arguments.seconds:
                images += len(next(made)[0])
            rate = images / (time.perf_counter() - began)
            batches.close()
            name = f"{num_processes} processes" if num_processes else f"{num_threads} threads"
            print(f"{name:>14} {rate:8.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
