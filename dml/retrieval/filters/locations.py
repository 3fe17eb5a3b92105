"""Locations of items in columns, and distances along great circles.

A location is held as tables of items can hold it: a text column of `latitude,longitude`, as `30.2,120.1`,
or two columns of numbers. All are degrees: latitudes from -90 to 90, longitudes from -180 to 180.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

EARTH_RADIUS_KM = 6371.0088
"""The mean radius of the Earth's ellipsoid (IUGG)."""
LOCATION = r"^\s*(?P<latitude>[+-]?\d+(?:\.\d*)?)\s*,\s*(?P<longitude>[+-]?\d+(?:\.\d*)?)\s*$"
"""A text that is a location, for RE2 and for `re`."""


def distances_km(
    latitudes: NDArray[np.float64], longitudes: NDArray[np.float64], latitude: float, longitude: float
) -> NDArray[np.float64]:
    """Great-circle distances to a center on a sphere, right at the poles, the antimeridian and the antipode.

    Args:
        latitudes: (N,) degrees.
        longitudes: (N,) degrees.
        latitude: of the center.
        longitude: of the center.

    Returns:
        (N,) kilometres; NaN where a coordinate is.

    Source: Vincenty 1975, for a sphere; its arctangent loses no digits at small or at large distances.

    Example:
        >>> distances_km(np.array([0.0, 90.0]), np.array([179.5, 7.0]), 0, -179.5).round(1)
        array([  111.2, 10007.6])
    """
    north, center_north = np.radians(latitudes), np.radians(latitude)
    east = np.radians(longitudes - longitude)
    across = np.cos(north) * np.sin(east)
    along = np.cos(center_north) * np.sin(north) - np.sin(center_north) * np.cos(north) * np.cos(east)
    towards = np.sin(center_north) * np.sin(north) + np.cos(center_north) * np.cos(north) * np.cos(east)
    distances: NDArray[np.float64] = EARTH_RADIUS_KM * np.arctan2(np.hypot(across, along), towards)
    return distances


def locations_in_text(texts: pa.ChunkedArray) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(N,) latitudes and (N,) longitudes, NaN where the text is missing; None: some text is no location."""
    fields = pc.extract_regex(texts, pattern=LOCATION)
    missing = pc.or_kleene(pc.is_null(texts), pc.equal(texts, ""))
    if not pc.all(pc.or_(pc.is_valid(fields), missing)).as_py():
        return None
    latitudes, longitudes = (
        _as_floats(pc.cast(pc.struct_field(fields, name), pa.float64())) for name in ("latitude", "longitude")
    )
    return (latitudes, longitudes) if are_locations(latitudes, longitudes) else None


def locations_in_numbers(
    latitudes: pa.ChunkedArray, longitudes: pa.ChunkedArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """As `locations_in_text`, of two columns of numbers."""
    north, east = (_as_floats(pc.cast(column, pa.float64())) for column in (latitudes, longitudes))
    return (north, east) if are_locations(north, east) else None


def are_locations(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> bool:
    """Whether all are degrees of latitude and longitude, or NaN."""
    return not ((np.abs(latitudes) > 90).any() or (np.abs(longitudes) > 180).any())


def _as_floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = pc.fill_null(column, float("nan")).to_numpy()
    return filled
