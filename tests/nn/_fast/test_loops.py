"""The compiled steps where nothing can be compiled: torch does the work, to the same numbers, with one warning."""

import os
import subprocess
import sys

import pytest
from numpy.testing import assert_allclose

pytestmark = pytest.mark.slow  # each starts processes that import and compile everything anew

SCRIPT = """
import sys, warnings
{before}
import numpy as np, torch

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from residmix.nn import Residualize
    assert "numba" not in sys.modules or {before!r}
    torch.manual_seed(0)
    layer = Residualize(3, 2, num_protected=1, warmup=0)
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        for _ in range(2):
            x = torch.randn(40, 3).to(kind).requires_grad_()
            out = layer(x, torch.randn(40, 2), torch.randn(40, 1))
            out.square().sum().backward()
            print(float(out.detach().abs().sum()), float(x.grad.abs().sum()))
    from residmix.nn._fast import loops
    for double in (True, False):
        step = loops.compiled(double)
        print(0 if step is None else len(step.step.signatures), 0 if step is None else len(step.lost.signatures))
print(sorted(str(w.message)[:40] for w in caught))
"""


def run(before="", **variables):
    """Return the numbers of some training steps, how many loops were compiled, and what was told."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, told = done.stdout.splitlines()
    numbers = [[float(number) for number in line.split()] for line in lines]
    return numbers[:-2], numbers[-2:], told


@pytest.fixture(scope="module")
def expected():
    return run()


def test_loops_are_imported_when_they_are_needed_and_compiled_once_a_kind(expected):
    _, compiled, told = expected
    assert compiled == [[2, 2], [2, 2]]  # doubles and floats, which half precision is made
    assert told == "[]"


@pytest.mark.parametrize(
    ("before", "variables"),
    [
        ("", {"NUMBA_DISABLE_JIT": "1"}),
        # a piece of numba that another version has elsewhere
        ("import numba.np.arrayobj; del numba.np.arrayobj.populate_array", {}),
    ],
    ids=["switched off", "another version"],
)
def test_layers_train_where_nothing_is_compiled_to_the_same_numbers(before, variables, expected):
    numbers, compiled, told = run(before, **variables)
    assert_allclose(numbers, expected[0], rtol=1e-5)
    assert compiled == [[0, 0], [0, 0]]
    assert told.count("numba can't compile") == 1
    assert told.count(",") == 0
