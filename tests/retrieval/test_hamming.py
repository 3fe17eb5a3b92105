"""Pairs of binary codes within a Hamming distance: the same as comparing all in plain loops."""

import numpy as np
import pytest

from dml.retrieval.hamming import pairs_within


def codes(rows: int, seed: int) -> np.ndarray:
    """Around three centres, so that there are near ones."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).integers(0, 2, (3, 64))
    flips = rng.random((rows, 64)) < 0.06
    return np.packbits(centers[rng.integers(0, 3, rows)] ^ flips, axis=1)


def plain(queries, gallery, max_distance, most):
    pairs = []
    for q, code in enumerate(queries):
        found = []
        for row, other in enumerate(gallery):
            distance = sum(int(a ^ b).bit_count() for a, b in zip(code, other, strict=True))
            if distance <= max_distance:
                found.append((distance, row))
        pairs += [(q, row, distance) for distance, row in sorted(found)[:most]]
    return pairs


@pytest.mark.parametrize("max_distance", [0, 1, 6, 64])
@pytest.mark.parametrize("most", [1, 5, 1000])
def test_pairs_are_those_of_the_plain_loop(max_distance, most):
    queries, gallery = codes(37, 0), codes(53, 1)
    blocks = list(pairs_within(queries, gallery, max_distance=max_distance, most=most))
    found = [
        pair
        for block in blocks
        for pair in zip(*(x.tolist() for x in (block.queries, block.gallery, block.distances)), strict=True)
    ]
    assert found == plain(queries, gallery, max_distance, most)
    assert sum(block.num_queries for block in blocks) == 37


def test_queries_with_more_pairs_than_are_kept_are_named():
    queries, gallery = codes(37, 0), codes(53, 1)
    (block,) = pairs_within(queries, gallery, max_distance=6, most=3)
    counts = np.bincount([q for q, _, _ in plain(queries, gallery, 6, 1000)], minlength=37)
    assert block.truncated.tolist() == np.flatnonzero(counts > 3).tolist()


def test_no_query_and_an_empty_gallery_have_no_pairs():
    none = np.empty((0, 8), np.uint8)
    assert list(pairs_within(none, codes(5, 0), max_distance=64, most=5)) == []
    (block,) = pairs_within(codes(5, 0), none, max_distance=64, most=5)
    assert len(block.queries) == 0
    assert block.num_queries == 5


def test_blocks_are_small_enough_for_all_their_pairs():
    same = np.zeros((300, 8), np.uint8)
    blocks = list(pairs_within(same, same, max_distance=0, most=300, pairs_held=1000))
    assert max(len(block.queries) for block in blocks) <= 1000
    assert sum(len(block.queries) for block in blocks) == 300 * 300
