"""A sum by several threads is the sum of a loop."""

import threading
import time

import numpy as np
import pytest

from residmix.rows.ordered import ordered_sum
from residmix.rows.threads import worker_pool


@pytest.fixture(params=["1", "2", "5"])
def threads(request, monkeypatch):
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", request.param)
    return int(request.param)


def joined(one, two):
    return one + two


def test_parts_are_added_in_order_whoever_is_first(threads):
    def part(index):
        # later parts are ready sooner
        time.sleep(0.002 * (index % 3 == 0))
        return [index]

    assert ordered_sum(part, 40, joined) == list(range(40))


def test_the_sum_has_the_bits_of_a_loop(threads):
    terms = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    expected = terms[0]
    for term in terms[1:]:
        expected += term
    assert ordered_sum(lambda i: terms[i], 200, joined) == expected


def test_one_part_is_the_sum(threads):
    assert ordered_sum(lambda index: "only", 1, joined) == "only"


def test_the_first_error_in_order_is_raised(threads):
    def part(index):
        if index == 3:
            time.sleep(0.01)
        if index >= 3:
            raise ValueError(f"part {index}")
        return index

    with pytest.raises(ValueError, match="part 3"):
        ordered_sum(part, 50, joined)


def test_an_error_while_adding_is_raised(threads):
    def merge(one, two):
        raise RuntimeError("can't add")

    with pytest.raises(RuntimeError, match="can't add"):
        ordered_sum(lambda index: index, 50, merge)


def test_few_finished_parts_wait_for_a_slow_one(monkeypatch):
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", "2")
    begun, most = [], []
    lock = threading.Lock()

    def part(index):
        with lock:
            begun.append(index)
        if index == 0:
            time.sleep(0.1)
            with lock:
                most.append(len(begun))
        return index

    assert ordered_sum(part, 1000, joined) == 999 * 500
    assert most[0] <= 8


def test_a_sum_within_a_sum_runs_where_it_is(threads):
    def part(index):
        return ordered_sum(lambda inner: index * inner, 10, joined)

    assert ordered_sum(part, 10, joined) == 45 * 45


def test_the_calling_thread_may_use_the_pool_again(threads):
    ordered_sum(lambda index: index, 10, joined)
    assert (worker_pool() is None) == (threads == 1)
