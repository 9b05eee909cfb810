"""When the report says that a column is still there."""

from collections import defaultdict

import pytest

from residmix.report.verdict import alerts, still_there


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


@pytest.mark.parametrize(
    ("gating", "estimation", "remedy"),
    [
        ("constant", "joint", 'gating="metadata"'),
        (None, None, 'gating="metadata"'),  # a mixture without metadata
        ("metadata", "two-stage", 'gating="metadata"'),  # which has no effect there
        ("age", "joint", "add it to gating"),
        ("metadata", "joint", None),  # as the model says
        ("age + C(site)", "joint", None),
    ],
)
def test_components_may_follow_what_their_weights_depend_on(gating, estimation, remedy):
    site = {"name": "site", "kind": "groups", "ami": 0.5}
    summary = defaultdict(list, metadata=[site], metadata_columns=["site", "age"], gating=gating, estimation=estimation)
    summary.update(certificate=None, fit=None)
    found = [note["message"] for note in alerts(summary) if note["kind"] == "components-follow-metadata"]
    assert [remedy in message for message in found] == ([] if remedy is None else [True])
