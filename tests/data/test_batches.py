"""What a training step gets does not depend on threads, workers or where it resumes."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dml import storage
from dml.config import AugmentationConfig, IngestConfig, PreprocessingConfig
from dml.data.batches import TrainingBatches
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.data.mapped import open_mapped
from dml.data.sampling import PKBatchSampler, Stream
from dml.data.transforms import augment, augmentation_rng
from dml.errors import InvalidData, TrainingFailed
from dml.preprocessing import preprocess, resampling, resize_and_crop, to_tensor

PREPROCESSING = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
EVERYTHING = AugmentationConfig(
    random_resized_crop=(0.5, 1.0), horizontal_flip=True, rotation=15, translation=0.1, scaling=(0.8, 1.2)
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    config = IngestConfig(name="d", source="glyphs:classes=16,per_class=5")
    return ingest(config, str(tmp_path_factory.mktemp("store")))


def batches(
    dataset, *, rank=0, world_size=1, first_step=0, augmentation=EVERYTHING, num_threads=2, **options
):
    rows = read_rows(dataset, split="test", columns=["class_id"])
    class_ids = rows["class_id"].to_numpy() - 8
    sampler = PKBatchSampler(
        class_ids,
        classes_per_batch=4,
        samples_per_class=3,
        stream=Stream(6, rank=rank, world_size=world_size, first_step=first_step),
    )
    return TrainingBatches(
        open_mapped(dataset),
        positions=rows["position"].to_numpy(),
        class_ids=class_ids,
        sampler=sampler,
        preprocessing=PREPROCESSING,
        augmentation=augmentation,
        seed=3,
        num_threads=num_threads,
        **options,
    )


def taken(made):
    try:
        return list(made)
    finally:
        made.close()


def assert_equal(got, want):
    assert len(got) == len(want)
    for (images, labels, positions), (images_, labels_, positions_) in zip(got, want, strict=True):
        torch.testing.assert_close(images, images_, rtol=0, atol=0)
        torch.testing.assert_close(labels, labels_)
        np.testing.assert_array_equal(positions, positions_)


def test_a_batch_is_its_rows_preprocessed(dataset):
    for images, labels, positions in taken(batches(dataset, augmentation=AugmentationConfig())):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        rows = read_rows(dataset, columns=["class_id"])
        mapped = open_mapped(dataset)
        for image, label, position in zip(images, labels, positions, strict=True):
            assert rows["class_id"][int(position)].as_py() == int(label) + 8
            want = preprocess(mapped.image(int(position)), PREPROCESSING)
            torch.testing.assert_close(image, want, rtol=0, atol=0)


def test_threads_do_not_change_a_batch(dataset):
    assert_equal(taken(batches(dataset, num_threads=1)), taken(batches(dataset, num_threads=5)))


@pytest.mark.slow
def test_processes_do_not_change_a_batch(dataset):
    got = taken(batches(dataset, rank=1, world_size=2, num_processes=2))
    assert_equal(got, taken(batches(dataset, rank=1, world_size=2)))


@pytest.mark.slow
def test_a_process_names_an_image_that_does_not_decode(tmp_path):
    config = IngestConfig(name="d", source="glyphs:classes=16,per_class=6")
    damaged = ingest(config, str(tmp_path / "store"))
    made = batches(damaged, num_processes=2)
    begin = made.mapped.image(0).tobytes()[:24]
    path = storage.cache_dir() / "rows" / damaged.fingerprint / "images.arrow"
    path.write_bytes(path.read_bytes().replace(begin, b"x" * len(begin)))
    with pytest.raises(InvalidData, match=r"Image 'U\+.*' of .*datasets/d"):
        taken(made)


@pytest.mark.slow
def test_a_killed_process_is_told_of_instead_of_waited_for(dataset):
    made = batches(dataset, num_processes=2)
    steps = iter(made)
    next(steps)
    children = [
        int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()
    ]
    for pid in children:
        if b"popen_loky" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainingFailed, match="one was killed"):
        list(steps)
    made.close()


def test_going_on_equals_never_having_stopped(dataset):
    assert_equal(taken(batches(dataset, first_step=4)), taken(batches(dataset))[4:])


def test_two_workers_share_the_batches_of_one(dataset):
    whole = taken(batches(dataset))
    parts = [taken(batches(dataset, rank=rank, world_size=2)) for rank in (0, 1)]
    for step, (images, labels, _) in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[step][0] for part in parts]), images, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([part[step][1] for part in parts]), labels)


def test_waiting_is_measured_and_closing_leaves_no_thread(dataset):
    made = batches(dataset)
    next(iter(made))
    assert made.wait_s > 0
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_image_that_does_not_decode_is_named(dataset, monkeypatch):
    made = batches(dataset)
    monkeypatch.setattr(made.mapped, "image", lambda position: b"broken")
    with pytest.raises(InvalidData, match=r"Image 'U\+.*' of .*datasets/d"):
        taken(made)
    assert storage.exists(dataset.uri)


def test_no_augmentation_is_preprocessing():
    image = Image.effect_noise((40, 33), 80)
    got = augment(image, AugmentationConfig(), PREPROCESSING, augmentation_rng(0, 0, 0))
    want = to_tensor(resize_and_crop(image, PREPROCESSING), PREPROCESSING)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_augmentation_is_a_function_of_seed_step_and_place():
    image = Image.effect_noise((40, 33), 80)

    def view(*where):
        return augment(image, EVERYTHING, PREPROCESSING, augmentation_rng(*where))

    torch.testing.assert_close(view(1, 2, 3), view(1, 2, 3), rtol=0, atol=0)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(view(1, 2, 3), view(*other))


class LargestDraws:
    """In a generator's place: every draw is the upper end of its range."""

    def uniform(self, low, high, size=None):
        return high if size is None else np.full(size, high)


def test_rotation_of_a_quarter_and_shift_of_nothing_turn_the_image():
    image = Image.effect_noise((28, 28), 80)
    got = augment(image, AugmentationConfig(rotation=90), PREPROCESSING, LargestDraws())
    want = to_tensor(image.transpose(Image.Transpose.ROTATE_270), PREPROCESSING)
    torch.testing.assert_close(got, want, rtol=0, atol=0.02)


def test_random_crops_cover_the_configured_area():
    side = 64
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    ranges = []
    config = AugmentationConfig(random_resized_crop=(0.25, 0.36))
    plain = PreprocessingConfig(color="L", resize=32, crop=32, mean=(0,), std=(1,))
    for place in range(40):
        width = augment(Image.fromarray(x), config, plain, augmentation_rng(0, 0, place)) * 255
        height = augment(Image.fromarray(y), config, plain, augmentation_rng(0, 0, place)) * 255
        ranges.append(float(np.ptp(width.numpy()) * np.ptp(height.numpy())) / (side - 1) ** 2)
    assert 0.2 < min(ranges) < max(ranges) < 0.4


def test_a_flip_of_the_smallest_draw_mirrors_and_of_the_largest_does_not():
    image = Image.effect_noise((28, 28), 80)
    config = AugmentationConfig(horizontal_flip=True)
    mirrored = augment(image, config, PREPROCESSING, ConstantDraws(0.0))
    as_it_is = augment(image, config, PREPROCESSING, ConstantDraws(0.999))
    torch.testing.assert_close(as_it_is, to_tensor(image, PREPROCESSING), rtol=0, atol=0)
    torch.testing.assert_close(mirrored, as_it_is.flip(2), rtol=0, atol=0)


class ConstantDraws:
    """In a generator's place: draws lie at one point of their range, from 0 to 1."""

    def __init__(self, point: float) -> None:
        self._point = point

    def random(self):
        return self._point

    def uniform(self, low, high):
        return low + self._point * (high - low)

    def integers(self, high):
        return min(int(self._point * high), high - 1)


@pytest.mark.parametrize("point", [0.0, 1.0])
def test_a_random_crop_may_be_the_whole_image_and_may_touch_every_edge(point):
    """At the ends of the ranges: a quarter of the area at 3:4 from the top left, the whole width from the
    bottom right."""
    size = (30, 40) if point == 0 else (40, 30)
    image = Image.effect_noise(size, 80)
    config = AugmentationConfig(random_resized_crop=(0.25, 1.0))
    got = augment(image, config, PREPROCESSING, ConstantDraws(point))
    box = (0, 0, 15, 20) if point == 0 else (0, 0, 40, 30)
    want = to_tensor(image.resize((28, 28), resampling(PREPROCESSING), box=box), PREPROCESSING)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_where_no_random_crop_fits_it_is_the_largest_in_the_middle_of_the_widest_shape():
    """The whole area at 3:4 does not fit a strip; at 4:3 at most, 12 high, it is 16 wide."""
    image = Image.effect_noise((60, 12), 80)
    config = AugmentationConfig(random_resized_crop=(1.0, 1.0))
    got = augment(image, config, PREPROCESSING, ConstantDraws(0.0))
    want = image.resize((28, 28), resampling(PREPROCESSING), box=(22, 0, 38, 12))
    torch.testing.assert_close(got, to_tensor(want, PREPROCESSING), rtol=0, atol=0)
