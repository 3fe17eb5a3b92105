"""A day at the counters: who is this, of everybody enrolled, or nobody?

python -m examples.alipay_day --identities 1000000 --arrivals 10000 --picture day.png

Each identity is enrolled with two photos, taken by machines that it used. An arrival is looked for among
those who used this machine before, then in the region, then everywhere, each above a calibrated threshold.
Where several could be it, the person is asked for the last digits of the phone. Beside this, one search
among everybody, with the similarity 0.4 and with a calibrated threshold.

The people are synthetic, and drawn around real embeddings: those of `--embeddings`, or of characters that are
drawn here (`--source`), which a linear discriminant analysis of their pixels embeds. A person is the mean of
some character plus a normal deviation with the covariance of all characters' means; half of the variance
each. So people have the real embeddings' spectrum, and some look alike. A photo deviates from its person as
some real image does from its character's mean, times `--spread`.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from dml.config import IndexConfig
from dml.data.sources.detect import open_source
from dml.embedding.external import import_vectors
from dml.metrics.intervals import wilson_interval
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate
from dml.retrieval.index import publish_index
from dml.serving.searcher import Searcher

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]
Result = TypeVar("Result")

PHOTOS = 2
REGIONS = 30
AGE_BANDS = ("under 20", "20 to 39", "40 to 59", "60 and over")
PHOTOS_PER_DEVICE, MOST_DEVICES = 100, 10_000
TWINS = 0.002
"""Share of the identities that are very similar to another one; both are enrolled."""
ARRIVALS = {
    "at a machine they used": 0.60,
    "elsewhere in their region": 0.15,
    "in another region": 0.10,
    "one of two twins": 0.03,
    "not enrolled": 0.10,
    "not enrolled, a look-alike": 0.02,
}
_NOT_ENROLLED = ("not enrolled", "not enrolled, a look-alike")
_RESEMBLANCE = 0.9
"""Share of a twin's or look-alike's variance that is the other one's."""
_SIDE, _COMPONENTS, _DIM = 28, 200, 64
_BLOCK = 1 << 16


def embedded_source(spec: str) -> tuple[Vectors, Numbers]:
    """Embeddings (n, 64) of the images of a source, and their classes: linear discriminants of the pixels."""
    source = open_source(spec)
    samples = source.list().samples
    images = [Image.open(io.BytesIO(source.read(sample.locator))).convert("L") for sample in samples]
    pixels = np.stack([np.asarray(image.resize((_SIDE, _SIDE)), np.float32).ravel() for image in images])
    classes = np.unique([sample.label for sample in samples], return_inverse=True)[1]
    pixels -= pixels.mean(0)
    _, directions = np.linalg.eigh(pixels.T @ pixels)
    few = pixels @ directions[:, -min(_COMPONENTS, len(pixels) // 4) :]
    means = class_means(few, classes)
    values, axes = np.linalg.eigh(np.cov((few - means[classes]).T) + 1e-3 * np.eye(few.shape[1]))
    whitened = few @ (axes / np.sqrt(values))
    _, axes = np.linalg.eigh(np.cov(class_means(whitened, classes).T))
    return unit(whitened @ axes[:, -_DIM:]).astype(np.float32), classes


def class_means(vectors: Vectors, classes: Numbers) -> Vectors:
    sums = np.zeros((classes.max() + 1, vectors.shape[1]), dtype=vectors.dtype)
    np.add.at(sums, classes, vectors)
    return (sums / np.bincount(classes)[:, None]).astype(vectors.dtype)


def unit(vectors: Vectors) -> Vectors:
    of_length_1: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return of_length_1


class People:
    """Draws people and photos around real embeddings.

    Args:
        vectors: (n, D) real embeddings of unit length.
        classes: (n,) of them.
        spread: how much photos of one person differ; 1: as real images of one class do.
        seed: of all draws.
    """

    def __init__(self, vectors: Vectors, classes: Numbers, spread: float, seed: int = 0) -> None:
        classes = np.unique(classes, return_inverse=True)[1]
        self.random = np.random.default_rng(seed)
        self._means = class_means(vectors, classes)
        self._deviations = spread * (vectors - self._means[classes])
        self._mean = self._means.mean(0)
        values, axes = np.linalg.eigh(np.cov(self._means.T))
        self._spectrum = (axes * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)
        anchors = self.random.choice(len(self._means), min(REGIONS, len(self._means)), replace=False)
        self._region = np.argmax(self._means @ self._means[anchors].T, axis=1)

    def draw(self, number: int) -> tuple[Vectors, Numbers]:
        """People (number, D), and the region of each: that of the characters which are most alike."""
        characters = self.random.integers(0, len(self._means), number)
        deviations = self.random.standard_normal((number, self._means.shape[1]), dtype=np.float32)
        people = self._mean + 0.5**0.5 * (
            self._means[characters] - self._mean + deviations @ self._spectrum
        ).astype(np.float32)
        return people, self._region[characters]

    def like(self, people: Vectors) -> Vectors:
        """For each person another one who looks alike."""
        others, _ = self.draw(len(people))
        return (
            self._mean
            + _RESEMBLANCE**0.5 * (people - self._mean)
            + (1 - _RESEMBLANCE) ** 0.5 * (others - self._mean)
        )

    def photos(self, people: Vectors) -> Vectors:
        """A photo of each, of unit length."""
        chosen = self.random.integers(0, len(self._deviations), len(people))
        return unit(people + self._deviations[chosen])


@dataclass(frozen=True)
class Enrolled:
    """The people that the store knows."""

    people: Vectors
    regions: Numbers
    devices: Numbers
    """(N, 2) where each photo was taken."""
    suffixes: list[str]
    ages: list[str]
    device_regions: Numbers
    """(number of devices,)"""
    num_twins: int
    """Person 2i and person 2i + 1 are twins, for the first so many people."""


def enrol(people: People, number: int) -> Enrolled:
    """Draw who is enrolled, with region, machines, age band and phone suffix."""
    random = people.random
    centres, regions = people.draw(number)
    num_twins = max(2, int(TWINS * number) // 2 * 2)
    centres[1:num_twins:2] = people.like(centres[0:num_twins:2])
    regions[1:num_twins:2] = regions[0:num_twins:2]
    num_devices = int(np.clip(PHOTOS * number // PHOTOS_PER_DEVICE, REGIONS, MOST_DEVICES))
    shares = np.bincount(regions, minlength=REGIONS) / number
    device_regions = np.repeat(np.arange(REGIONS), np.maximum(shares * num_devices, 1).astype(int))
    first = np.searchsorted(device_regions, np.arange(REGIONS))
    in_region = np.bincount(device_regions)
    devices = first[regions, None] + random.integers(0, in_region[regions, None], (number, PHOTOS))
    stays = random.random(number) < 0.5  # at the machine nearest to them
    devices[stays, 1] = devices[stays, 0]
    return Enrolled(
        people=centres,
        regions=regions,
        devices=devices,
        suffixes=[f"{suffix:04d}" for suffix in random.integers(0, 10_000, number)],
        ages=[AGE_BANDS[band] for band in random.integers(0, len(AGE_BANDS), number)],
        device_regions=device_regions,
        num_twins=num_twins,
    )


def write_photos(people: People, enrolled: Enrolled, folder: Path) -> tuple[Path, Path]:
    """The photos' vectors, and a table of their columns, as `dml import` reads them."""
    number, dim = enrolled.people.shape
    rows = PHOTOS * number
    vectors = np.lib.format.open_memmap(folder / "photos.npy", "w+", np.float32, (rows, dim))
    owners = np.repeat(np.arange(number), PHOTOS)
    for start in range(0, rows, _BLOCK):
        vectors[start : start + _BLOCK] = people.photos(enrolled.people[owners[start : start + _BLOCK]])
    vectors.flush()
    table = pa.table(
        {
            "id": [f"photo-{row:08d}" for row in range(rows)],
            "label": [identity(owner) for owner in owners.tolist()],
            "region": [region_name(region) for region in enrolled.regions[owners].tolist()],
            "device": [device_name(device) for device in enrolled.devices.ravel().tolist()],
            "age_band": [enrolled.ages[owner] for owner in owners.tolist()],
            "phone_suffix": [enrolled.suffixes[owner] for owner in owners.tolist()],
        }
    )
    parquet.write_table(table, folder / "photos.parquet")
    return folder / "photos.npy", folder / "photos.parquet"


def identity(number: int) -> str:
    return f"person-{number:07d}"


def region_name(number: int) -> str:
    return f"region-{number:02d}"


def device_name(number: int) -> str:
    return f"machine-{number:05d}"


@dataclass(frozen=True)
class Arrivals:
    """Those who come in a day."""

    photos: Vectors
    kinds: list[str]
    owners: Numbers
    """Who each is; -1: not enrolled."""
    devices: Numbers
    """The machine that each stands at."""


def arrive(people: People, enrolled: Enrolled, number: int) -> Arrivals:
    random = people.random
    kinds = random.choice(list(ARRIVALS), number, p=list(ARRIVALS.values())).tolist()
    owners = random.integers(0, len(enrolled.people), number)
    is_twin = np.array([kind == "one of two twins" for kind in kinds])
    owners[is_twin] = random.integers(0, enrolled.num_twins, int(is_twin.sum()))
    centres = enrolled.people[owners].copy()
    devices = enrolled.devices[owners, random.integers(0, PHOTOS, number)]
    num_devices = len(enrolled.device_regions)
    away = np.array([kind in ("in another region", "not enrolled") for kind in kinds])
    devices[away] = random.integers(0, num_devices, int(away.sum()))
    in_region = np.array([kind == "elsewhere in their region" for kind in kinds])
    regions = enrolled.regions[owners]
    first = np.searchsorted(enrolled.device_regions, regions)
    devices[in_region] = (first + random.integers(0, np.bincount(enrolled.device_regions)[regions]))[
        in_region
    ]
    new = np.array([kind == "not enrolled" for kind in kinds])
    centres[new] = people.draw(int(new.sum()))[0]
    alike = np.array([kind == "not enrolled, a look-alike" for kind in kinds])
    centres[alike] = people.like(centres[alike])
    owners[new | alike] = -1
    return Arrivals(people.photos(centres), kinds, owners, devices)


@dataclass
class Outcomes:
    """What one way of answering did with all arrivals."""

    name: str
    answers: list[str | None] = field(default_factory=list)
    """Who it said that each is; None: nobody."""
    hints: list[bool] = field(default_factory=list)
    """Whether it asked for one."""
    decided: list[str] = field(default_factory=list)
    """The column of the scope that decided; empty: everybody."""
    milliseconds: list[float] = field(default_factory=list)
    """Processor time of each arrival."""

    def rates(self, arrivals: Arrivals) -> dict[str, float]:
        """Shares of the arrivals that each rate is about."""
        owners = arrivals.owners
        said = np.array([answer is not None for answer in self.answers])
        right = np.array(
            [answer == identity(owner) for answer, owner in zip(self.answers, owners.tolist(), strict=True)]
        )
        known = owners >= 0
        not_enrolled = np.array([kind == "not enrolled" for kind in arrivals.kinds])
        alike = np.array([kind == "not enrolled, a look-alike" for kind in arrivals.kinds])
        return {
            "accepted": float(said.mean()),
            "rejected": float((~said).mean()),
            "asked for a hint": float(np.mean(self.hints)),
            "enrolled: identified": share(right, known),
            "enrolled: rejected": share(~said, known),
            "enrolled: taken for another": share(said & ~right, known),
            "not enrolled: accepted (FPIR)": share(said, not_enrolled),
            "look-alikes: accepted": share(said, alike),
        }

    def fpir(self, arrivals: Arrivals) -> tuple[float, float]:
        """The 95 % interval of the share of those not enrolled who were accepted."""
        accepted = [
            answer is not None
            for answer, kind in zip(self.answers, arrivals.kinds, strict=True)
            if kind == "not enrolled"
        ]
        interval = wilson_interval(sum(accepted), len(accepted))
        return interval.low, interval.high


def share(holds: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(holds[among].mean()) if among.any() else float("nan")


def by_scopes(
    searcher: Searcher, enrolled: Enrolled, arrivals: Arrivals, fpir: float, refused: set[str]
) -> Outcomes:
    """Machine, region, everybody, without the scopes that `calibrate` refused; a hint where several fit."""
    outcomes = Outcomes("machine, region, everybody")
    random = np.random.default_rng(1)
    for photo, owner, device in zip(
        arrivals.photos, arrivals.owners.tolist(), arrivals.devices.tolist(), strict=True
    ):
        region = region_name(enrolled.device_regions[device])
        scopes = [f"device = '{device_name(device)}'", f"region = '{region}'", ""]
        scopes = [scope for scope in scopes if scope not in refused]
        start = time.thread_time()
        found = searcher.identify(photo, scopes=scopes, fpir=fpir, never_ask=["device"])
        outcomes.milliseconds.append(1e3 * (time.thread_time() - start))
        decided = found.tried[-1].scope.partition(" ")[0] if found.identity or found.ask else ""
        outcomes.decided.append(decided)
        outcomes.hints.append(found.status == "needs_hint")
        if found.status == "needs_hint" and found.ask is not None:
            known = {
                "phone_suffix": enrolled.suffixes[owner] if owner >= 0 else f"{random.integers(10_000):04d}",
                "age_band": enrolled.ages[owner] if owner >= 0 else str(random.choice(AGE_BANDS)),
                "region": region_name(enrolled.regions[owner]) if owner >= 0 else region,
            }
            hint = {found.ask: known[found.ask]}
            found = searcher.identify(photo, scopes=scopes, fpir=fpir, never_ask=["device"], hint=hint)
        outcomes.answers.append(found.identity)
    return outcomes


def by_one_search(searcher: Searcher, arrivals: Arrivals, threshold: float) -> list[Outcomes]:
    """The most similar of everybody, from 0.4 on, and from a calibrated threshold on."""
    plain, calibrated = (
        Outcomes("one search, 0.4"),
        Outcomes(f"one search, calibrated {threshold:.3f}"),
    )
    for photo in arrivals.photos:
        start = time.thread_time()
        (result,) = searcher.search_vectors(photo[None], k=1)
        taken = 1e3 * (time.thread_time() - start)
        best = result.answers[0]
        for outcomes, limit in ((plain, 0.4), (calibrated, threshold)):
            outcomes.answers.append(best.label if best.similarity >= limit else None)
            outcomes.hints.append(False)
            outcomes.decided.append("")
            outcomes.milliseconds.append(taken)
    return [plain, calibrated]


def timed(what: str, work: Callable[[], Result]) -> Result:
    """Print how long it took, the processor's time, and the most memory that the process has had so far."""
    start, of_processor = time.perf_counter(), time.process_time()
    result = work()
    taken, of_processor = time.perf_counter() - start, time.process_time() - of_processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(f"{what}: {taken:.0f} s, {of_processor:.0f} s of processor, {memory:.1f} GB", flush=True)
    return result


def print_rates(ways: Sequence[Outcomes], arrivals: Arrivals, fpir: float) -> None:
    rates = [way.rates(arrivals) for way in ways]
    print(f"\n{'%, FPIR wanted ' + format(100 * fpir, 'g'):32}" + "".join(f"{way.name:>29}" for way in ways))
    for name in rates[0]:
        print(f"{name:32}" + "".join(f"{100 * each[name]:29.2f}" for each in rates))
        if name.endswith("(FPIR)"):
            within = [
                f"{100 * low:.2f} to {100 * high:.2f}" for low, high in (way.fpir(arrivals) for way in ways)
            ]
            print(f"{'  95 % interval':32}" + "".join(f"{each:>29}" for each in within))
    print(f"{'ms of processor, median':32}" + "".join(f"{np.median(way.milliseconds):29.2f}" for way in ways))


def print_stages(scoped: Outcomes, arrivals: Arrivals) -> None:
    decided, taken = np.array(scoped.decided), np.array(scoped.milliseconds)
    said = np.array([answer is not None for answer in scoped.answers])
    print("\ndecided after            arrivals  accepted  ms median  ms 95 %")
    for name, column in (("the machine", "device"), ("the region", "region"), ("everybody", "")):
        here = decided == column
        if here.any():
            print(
                f"{name:24}{here.mean():9.1%}{said[here].mean():10.1%}{np.median(taken[here]):11.2f}"
                f"{np.quantile(taken[here], 0.95):9.2f}"
            )
    print("\narrivals                      share  identified or, not enrolled, rejected")
    right = np.array(
        [
            answer == (identity(owner) if owner >= 0 else None)
            for answer, owner in zip(scoped.answers, arrivals.owners.tolist(), strict=True)
        ]
    )
    for kind in ARRIVALS:
        here = np.array([each == kind for each in arrivals.kinds])
        if here.any():
            print(f"{kind:28}{here.mean():7.1%}{right[here].mean():8.1%}")


def draw(ways: Sequence[Outcomes], arrivals: Arrivals, fpir: float, path: Path) -> None:
    """Three panels: those enrolled, those not enrolled, and the processor's time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (enrolled, not_enrolled, latency) = pyplot.subplots(1, 3, figsize=(10, 3.1))
    names = [way.name.replace(", ", ",\n", 1) for way in ways]
    rates = [way.rates(arrivals) for way in ways]
    left = np.zeros(len(ways))
    for name, color in (("rejected", "#9aa5b1"), ("taken for another", "#c0392b")):
        widths = np.array([100 * each[f"enrolled: {name}"] for each in rates])
        enrolled.barh(names, widths, left=left, color=color, label=name)
        left += widths
    enrolled.bar_label(enrolled.containers[-1], [f"{each:.2f}" for each in left], fontsize=8, padding=2)
    enrolled.set(title="enrolled, and not identified, %", xlim=(0, 1.25 * max(left.max(), 0.1)))
    enrolled.legend(fontsize=7)
    accepted = [100 * each["not enrolled: accepted (FPIR)"] for each in rates]
    bars = not_enrolled.barh(names, accepted, color="#c0392b")
    not_enrolled.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    not_enrolled.axvline(100 * fpir, color="black", linewidth=1, linestyle=":")
    not_enrolled.set(title=f"not enrolled, accepted, % (wanted {100 * fpir:g})", xlim=(0, 115), yticks=[])
    decided, taken = np.array(ways[0].decided), np.array(ways[0].milliseconds)
    stages = (("machine", "device"), ("+ region", "region"), ("+ all", ""))
    groups = [(name, taken[decided == column]) for name, column in stages]
    groups.append(("one search", np.array(ways[1].milliseconds)))
    groups = [(name, values) for name, values in groups if len(values)]
    latency.boxplot([values for _, values in groups], showfliers=False, tick_labels=[n for n, _ in groups])
    latency.set(title="processor time, ms", yscale="log")
    latency.tick_params(axis="x", labelsize=7)
    for axes in (enrolled, not_enrolled, latency):
        axes.title.set_fontsize(9)
        axes.tick_params(axis="y", labelsize=7)
    enrolled.invert_yaxis()
    not_enrolled.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def day(arguments: argparse.Namespace, store: Path) -> None:
    """Enrol, calibrate, and answer a day's arrivals."""
    if arguments.embeddings is not None:
        with np.load(arguments.embeddings) as held:
            real, classes = held["vectors"], held["class_ids"]
    else:
        real, classes = timed(f"embedding {arguments.source}", lambda: embedded_source(arguments.source))
    people = People(real, classes, arguments.spread)
    enrolled = enrol(people, arguments.identities)
    arrivals = arrive(people, enrolled, arguments.arrivals)
    print(
        f"{arguments.identities} people drawn around {len(real)} embeddings of "
        f"{len(np.unique(classes))} classes, "
        f"{PHOTOS * arguments.identities} photos of {real.shape[1]} dimensions, {REGIONS} regions, "
        f"{len(enrolled.device_regions)} machines, {arguments.arrivals} arrivals"
    )
    with tempfile.TemporaryDirectory(dir=store) as folder:
        vectors, columns = write_photos(people, enrolled, Path(folder))
        imported = timed(
            "import", lambda: import_vectors(str(store), "people", vectors, attributes=columns)
        ).embeddings
    config = IndexConfig(factory=arguments.factory, recall=arguments.recall)
    index = timed("index", lambda: build_index(str(store), "people", imported, config))
    publish_index(str(store), index)
    report = timed(
        "calibrate",
        lambda: calibrate(str(store), index, fpir=arguments.fpir, by=["region", "device"]),
    )
    print(
        f"{index}: {index.factory}, recall@10 {index.recall:.3f}; thresholds for {report.num_promised} of "
        f"{len(report.scopes)} scopes"
    )
    if report.scopes[0].refused:
        raise SystemExit(report.scopes[0].refused)
    searcher = Searcher.open(store, "people")
    refused = {scope.scope for scope in report.scopes if scope.refused}
    everybody = searcher.identify(arrivals.photos[0], fpir=arguments.fpir).tried[0].threshold
    assert everybody is not None
    scoped = timed("arrivals", lambda: by_scopes(searcher, enrolled, arrivals, arguments.fpir, refused))
    plain = timed("the same by one search", lambda: by_one_search(searcher, arrivals, everybody))
    ways = [scoped, *plain]
    print_rates(ways, arrivals, arguments.fpir)
    print_stages(scoped, arrivals)
    if arguments.picture is not None:
        draw(ways, arrivals, arguments.fpir, arguments.picture)
        print(f"\npicture: {arguments.picture}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identities", type=int, default=20_000, help="people enrolled")
    parser.add_argument("--arrivals", type=int, default=2_000)
    parser.add_argument("--fpir", type=float, default=0.01, help="wanted over all scopes of one arrival")
    parser.add_argument("--source", default="glyphs:", help="images to draw people around")
    parser.add_argument(
        "--embeddings", type=Path, help=".npz with `vectors` (n, D) and `class_ids` (n,), instead of a source"
    )
    parser.add_argument("--spread", type=float, default=0.4, help="photos of a person / images of a class")
    parser.add_argument("--factory", default="auto", help="of the index")
    parser.add_argument("--recall", type=float, default=0.99, help="that the index is tuned to")
    parser.add_argument("--picture", type=Path, help="PNG file to draw the rates and times into")
    parser.add_argument("--store", type=Path, help="a folder to keep; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or Path(folder)
        store.mkdir(parents=True, exist_ok=True)
        day(arguments, store)


if __name__ == "__main__":
    main()
