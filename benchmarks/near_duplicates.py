"""What finding near-duplicates costs, and how often it errs: `python -m benchmarks.near_duplicates`.

By default 60,000 drawn pictures as JPEG, of which every hundredth is there again: half as large, brighter and
encoded worse. With `--store STORE --dataset NAME` the images of that dataset; who knows that it holds no
near-duplicates reads false ones from the table: pairs by hash alone, and those that also pass the comparison
of thumbnails. Time is of one process with as many threads as OMP_NUM_THREADS says, 8 for decoding; memory is
the peak beyond what the images take.
"""

import argparse
import io
import resource
import time

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.data.dataset import find_dataset
from dml.data.thumbnails import make_thumbnails, read_thumbnails
from dml.report.near_duplicates import MAX_DISTANCE, MIN_SIMILARITY, find_near_duplicates
from dml.report.perceptual_hash import perceptual_hashes, structure_similarity
from dml.retrieval.hamming import pairs_within

DISTANCES, SIMILARITIES = (0, 2, 4, 6, 8), (0.9, 0.95, 0.97, 0.98, 0.99)
_AGAIN_EVERY = 100
_BLOCK = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--store")
    parser.add_argument("--dataset")
    arguments = parser.parse_args()
    if arguments.dataset is not None:
        start = time.perf_counter()
        pixels = read_thumbnails(find_dataset(arguments.store, arguments.dataset)).pixels
        _say("thumbnails, or reading those that there are", start)
        _find(pixels)
        _table(pixels)
        return
    images = [_jpeg(number) for number in range(arguments.images)]
    peak = _peak_mib()
    start = time.perf_counter()
    blocks = range(0, len(images), _BLOCK)
    pixels = np.concatenate([make_thumbnails(images[first : first + _BLOCK]).pixels for first in blocks])
    _say("thumbnails", start)
    nearest = _find(pixels)
    print(f"memory beyond the images: {_peak_mib() - peak:,.0f} MiB")
    again = np.arange(_AGAIN_EVERY - 1, len(images), _AGAIN_EVERY)
    found = int((nearest[again] == again - 1).sum())
    others = np.delete(nearest, np.concatenate([again, again - 1]))
    print(f"{found:,} of {len(again):,} copies found, {int((others >= 0).sum()):,} other images suspected")


def _jpeg(number: int) -> bytes:
    """A picture of soft spots; every hundredth is the one before it in another form."""
    again = number % _AGAIN_EVERY == _AGAIN_EVERY - 1
    rng = np.random.default_rng(number - again)
    spots = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    picture = spots.resize((96, 96), Image.Resampling.BICUBIC)
    if again:
        picture = picture.resize((48, 48)).point(lambda value: 20 + value * 0.85)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=50 if again else 90)
    return out.getvalue()


def _find(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The nearest of each image."""
    start = time.perf_counter()
    found = find_near_duplicates(pixels)
    _say(f"near-duplicates among {len(pixels):,}", start)
    print(f"{len(found.rows):,} images have one, {found.num_pairs:,} pairs, {found.truncated:,} truncated")
    return found.nearest


def _table(pixels: NDArray[np.uint8]) -> None:
    """Pairs by the hashes' distance and the thumbnails' similarity."""
    hashes = perceptual_hashes(pixels)
    counts = np.zeros((len(DISTANCES), 1 + len(SIMILARITIES)), dtype=np.int64)
    for block in pairs_within(hashes, hashes, max_distance=max(DISTANCES), most=len(pixels)):
        each_once = block.queries < block.gallery
        queries, gallery = block.queries[each_once], block.gallery[each_once]
        similarity = np.concatenate(
            [
                structure_similarity(pixels[queries[part]], pixels[gallery[part]])
                for part in np.array_split(np.arange(len(queries)), len(queries) // _BLOCK + 1)
            ]
        )
        for row, distance in enumerate(DISTANCES):
            near = block.distances[each_once] <= distance
            counts[row] += [int(near.sum()), *(int((near & (similarity >= s)).sum()) for s in SIMILARITIES)]
    total = len(pixels) * (len(pixels) - 1) / 2
    print(f"pairs within a distance, of {total:.3g}; those with a similarity of at least {SIMILARITIES}")
    for distance, row in zip(DISTANCES, counts.tolist(), strict=True):
        print(f"{distance:>3} " + " ".join(f"{count:>9,}" for count in row))
    default = counts[DISTANCES.index(MAX_DISTANCE), 1 + SIMILARITIES.index(MIN_SIMILARITY)]
    print(f"share of all pairs at the default ({MAX_DISTANCE}, {MIN_SIMILARITY}): {default / total:.1e}")


def _say(what: str, start: float) -> None:
    print(f"{what}: {time.perf_counter() - start:,.1f} s", flush=True)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
