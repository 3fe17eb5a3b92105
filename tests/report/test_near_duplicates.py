"""Near-duplicates: as comparing all pairs in plain loops, within a set and between two."""

import numpy as np
import pytest

from dml.report.near_duplicates import NearDuplicates, find_near_duplicates
from dml.report.perceptual_hash import perceptual_hashes, structure_similarity


def thumbnails(rows: int, seed: int) -> np.ndarray:
    """Of seven pictures, each several times with a little noise."""
    pictures = np.random.default_rng(99).integers(0, 255, (7, 8, 8)).repeat(4, axis=1).repeat(4, axis=2)
    rng = np.random.default_rng(seed)
    noisy = pictures[rng.integers(0, 7, rows)] + rng.normal(0, 12, (rows, 32, 32))
    return noisy.clip(0, 255).astype(np.uint8)


def plain(images, gallery, max_distance, min_similarity):
    """Each image's near-duplicates as (-similarity, distance, row), sorted."""
    within = gallery is None
    others = images if within else gallery
    hashes, other_hashes = perceptual_hashes(images), perceptual_hashes(others)
    pairs = []
    for query in range(len(images)):
        mine = []
        for row in range(len(others)):
            distance = int(np.bitwise_count(hashes[query] ^ other_hashes[row]).sum())
            similarity = float(structure_similarity(images[query][None], others[row][None])[0])
            alike = distance <= max_distance and similarity >= min_similarity
            if alike and not (within and query == row):
                mine.append((-similarity, distance, row))
        pairs.append(sorted(mine))
    return pairs


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize(("max_distance", "min_similarity"), [(6, 0.97), (64, 0.9), (0, -1.0)])
def test_the_nearest_and_the_number_of_pairs_are_those_of_the_plain_loop(
    within, max_distance, min_similarity
):
    images, gallery = thumbnails(40, 0), None if within else thumbnails(30, 1)
    pairs = find_near_duplicates(images, gallery, max_distance=max_distance, min_similarity=min_similarity)
    expected = plain(images, gallery, max_distance, min_similarity)
    assert pairs.nearest.tolist() == [mine[0][2] if mine else -1 for mine in expected]
    assert pairs.num_pairs == sum(map(len, expected)) // (2 if within else 1)
    assert pairs.truncated == 0
    for row in pairs.rows:
        similarity, distance, _ = expected[row][0]
        assert pairs.distances[row] == distance
        assert pairs.similarities[row] == pytest.approx(-similarity)


def test_of_equal_images_the_first_is_the_nearest_however_few_pairs_are_compared_at_a_time():
    images = thumbnails(20, 0)
    gallery = np.concatenate([images, images])
    pairs = find_near_duplicates(images, gallery, pairs_at_a_time=1)
    assert pairs.nearest.tolist() == list(range(20))
    assert pairs.num_pairs == find_near_duplicates(images, gallery).num_pairs


def test_an_image_is_no_duplicate_of_itself():
    different = np.random.default_rng(0).integers(0, 255, (20, 32, 32), dtype=np.uint8)
    pairs = find_near_duplicates(different)
    assert (pairs.nearest == -1).all()
    assert pairs.num_pairs == 0
    assert pairs.pairs() == []


def test_equal_images_are_found_where_very_many_are_alike():
    same = np.full((50, 32, 32), 7, np.uint8)
    pairs = find_near_duplicates(same, most_candidates=5)
    assert (pairs.nearest >= 0).all()
    assert pairs.truncated == 50
    assert pairs.num_pairs >= 125


def test_the_most_alike_come_first():
    rows = NearDuplicates(
        np.array([5, -1, 6, 7]),
        np.array([2, 0, 0, 0], np.int32),
        np.array([0.98, 0.0, 0.98, 1.0], np.float32),
        3,
        0,
    )
    assert rows.pairs() == [(3, 7), (2, 6), (0, 5)]


@pytest.mark.parametrize("within", [True, False])
def test_no_images_have_no_duplicates(within):
    none = np.empty((0, 32, 32), np.uint8)
    assert find_near_duplicates(none, None if within else thumbnails(3, 0)).pairs() == []
    assert find_near_duplicates(thumbnails(3, 0), none).pairs() == []
