"""What docs/commands.md says of `--set` and `--where` holds."""

import re
from pathlib import Path

import pytest

from dml.presets import experiment

TEXT = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
SETTINGS = [
    found
    for found in re.findall(r"`([^`]+)`", TEXT[TEXT.index("| a field of |") : TEXT.index("Another `kind`")])
    if "=" in found
]


def test_there_are_settings_of_every_sort():
    assert len(SETTINGS) >= 8


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_table_can_be_set(setting):
    late = ["training.num_steps=2000"] if setting.startswith("memory.") else []
    assert experiment("smoke").overridden([setting, *late]).name
