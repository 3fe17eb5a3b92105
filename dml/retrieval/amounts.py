"""Counts and amounts of memory: text such as `1e9` or `64GiB` in, numbers out; and back for people."""

import math
import os
from contextlib import suppress
from pathlib import Path

from dml.errors import InvalidSetting
from dml.numbers import read_number

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {f"{unit}i": 1 << (10 * power) for power, unit in enumerate("kmgtp", start=1)}


def parse_count(name: str, text: str) -> int:
    """`1e9`, `250000`, `250_000`, `100M`: a whole number.

    Raises:
        InvalidSetting: it is none.
    """
    value = _number(text, _UNITS | {"b": 10**9})
    if value is None or value != int(value):
        raise InvalidSetting(f"{name} must be a whole number, as 250000, 1e9 or 100M; got {text!r}.")
    return int(value)


def parse_bytes(name: str, text: str) -> int:
    """`64G` or `64GB` (10^9 bytes each), `64GiB` or `64Gi` (2^30), `500M`, `1.5T`, or bytes.

    Raises:
        InvalidSetting: it is none.
    """
    value = _number(text, _UNITS | _BINARY, suffix="b")
    if value is None:
        raise InvalidSetting(
            f"{name} must be an amount of memory, as 64G, 512MB or 1.5TiB; got {text!r}. Units: K, M, G, T "
            "(powers of 1000), KiB, MiB, GiB, TiB."
        )
    return int(value)


def show_bytes(size: float) -> str:
    """`43 GB`: three digits."""
    power = min(int(math.log10(max(size, 1)) / 3 + 1e-9), 5)
    return f"{size / 1000**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB', 'PB')[power]}"


def machine_memory() -> int:
    """Bytes of memory that a process may use here: the machine's, or its control group's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 16 * 10**9
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return min(total, int(Path(limit).read_text()))
    return total


def _number(text: str, units: dict[str, int], suffix: str = "") -> float | None:
    words = text.strip().lower().replace("_", "")
    number = words.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = words[len(number) :].strip()
    if suffix and unit not in units:
        unit = unit.removesuffix(suffix)
    with suppress(ValueError):
        value = read_number(number) * units.get(unit, math.nan)
        return value if math.isfinite(value) else None
    return None
