"""A grid of tenths of a degree over the Earth, and the part of it that a circle can reach."""

import math

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.filters.locations import EARTH_RADIUS_KM

PER_DEGREE = 10
_WIDTH = 360 * PER_DEGREE + 1
_SLACK = 1e-6  # degrees, a tenth of a metre: more than the rounding of the distance

Ranges = list[tuple[float, float]]
"""Low and high, both included."""


def cells_of(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the number of each location's cell; those of one latitude follow each other from west to east."""
    return _steps(latitudes, 90) * _WIDTH + _steps(longitudes, 180)


def _steps(degrees: NDArray[np.float64], least: int) -> NDArray[np.int64]:
    return np.floor((degrees + least) * PER_DEGREE).astype(np.int64)


def box_around(latitude: float, longitude: float, radius_km: float) -> tuple[tuple[float, float], Ranges]:
    """The latitudes, and the ranges of longitudes, outside of which no location is in a circle."""
    angle = math.degrees(radius_km / EARTH_RADIUS_KM) + _SLACK
    low, high = latitude - angle, latitude + angle
    if low <= -90 or high >= 90 or angle >= 90:
        return (max(low, -90.0), min(high, 90.0)), [(-180.0, 180.0)]
    ratio = math.sin(math.radians(angle)) / math.cos(math.radians(latitude))
    width = math.degrees(math.asin(min(ratio, 1.0))) + _SLACK
    west, east = longitude - width, longitude + width
    if east - west >= 360:
        return (low, high), [(-180.0, 180.0)]
    ranges = [(max(west, -180.0), min(east, 180.0))]
    if west <= -180:
        ranges.append((west + 360, 180.0))
    if east >= 180:
        ranges.append((-180.0, east - 360))
    return (low, high), ranges


def cell_ranges(
    latitudes: tuple[float, float], longitudes: Ranges
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last cell of each latitude in each range of longitudes; no cell is in two of them."""
    bottom, top = _steps(np.array(latitudes), 90)
    rows = np.arange(bottom, top + 1) * _WIDTH
    spans = np.array([_steps(np.array(span), 180) for span in longitudes])
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    merged = [spans[0]]
    for span in spans[1:]:
        if span[0] <= merged[-1][1]:
            merged[-1] = np.array([merged[-1][0], max(span[1], merged[-1][1])])
        else:
            merged.append(span)
    return (
        np.concatenate([rows + span[0] for span in merged]),
        np.concatenate([rows + span[1] for span in merged]),
    )
