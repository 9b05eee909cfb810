"""When the report says that a column is still there."""

import pytest

from residmix.report.verdict import still_there


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ({}, True),
        ({"after_p": None}, True),  # nothing was permuted
        ({"after_p": 0.05}, True),
        ({"after_p": 0.06}, False),  # a high score that chance gives as well
        ({"after": 0.6}, True),
        ({"after": 0.59}, False),
        ({"after": None}, False),
        ({"held_out": False}, False),  # what the rows of a fit say isn't held out
        ({"kind": "number", "after": 0.05}, True),
        ({"kind": "number", "after": 0.04}, False),
    ],
)
def test_a_column_is_still_there_if_a_held_out_probe_beats_chance_by_enough(change, there):
    row = {"held_out": True, "kind": "groups", "before": 0.9, "after": 0.7, "after_p": 0.01}
    assert still_there({**row, **change}) is there
