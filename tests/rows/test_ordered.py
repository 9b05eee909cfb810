"""A sum by several threads is the sum of a loop."""

import threading
import time

import numpy as np
import pytest

from residmix.rows.ordered import ordered_map, ordered_sum
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

    assert ordered_sum(part, range(40), joined) == list(range(40))


def test_the_sum_has_the_bits_of_a_loop(threads):
    terms = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    expected = terms[0]
    for term in terms[1:]:
        expected += term
    assert ordered_sum(lambda i: terms[i], range(200), joined) == expected


def test_one_part_is_the_sum(threads):
    assert ordered_sum(lambda index: "only", range(1), joined) == "only"


def test_the_first_error_in_order_is_raised(threads):
    def part(index):
        if index == 3:
            time.sleep(0.01)
        if index >= 3:
            raise ValueError(f"part {index}")
        return index

    with pytest.raises(ValueError, match="part 3"):
        ordered_sum(part, range(50), joined)


def test_an_error_while_adding_is_raised(threads):
    def merge(one, two):
        raise RuntimeError("can't add")

    with pytest.raises(RuntimeError, match="can't add"):
        ordered_sum(lambda index: index, range(50), merge)


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

    assert ordered_sum(part, range(1000), joined) == 999 * 500
    assert most[0] <= 8


def test_a_sum_within_a_sum_runs_where_it_is(threads):
    def part(index):
        return ordered_sum(lambda inner: index * inner, range(10), joined)

    assert ordered_sum(part, range(10), joined) == 45 * 45


def test_the_calling_thread_may_use_the_pool_again(threads):
    ordered_sum(lambda index: index, range(10), joined)
    assert (worker_pool() is None) == (threads == 1)


def test_results_come_in_order_and_items_are_taken_by_whoever_is_free(threads):
    taken = set()

    def items():
        for i in range(60):
            taken.add(threading.get_ident())
            yield i

    def slow_at_times(item):
        time.sleep(0.002 * (item % 3 == 0))
        return 2 * item

    assert list(ordered_map(slow_at_times, items())) == [2 * i for i in range(60)]
    assert (threading.get_ident() in taken) == (threads == 1)


def test_reading_ahead_is_bounded_and_nothing_is_taken_after_the_end(threads):
    read = []

    def items():
        for i in range(100):
            read.append(i)
            yield i

    results = ordered_map(lambda item: item, items(), ahead=3)
    for i in results:
        assert len(read) <= i + 1 + 3
        if i == 20:
            break
    results.close()
    seen = len(read)
    time.sleep(0.01)
    assert len(read) == seen < 30


def test_an_error_among_items_or_results_comes_when_its_turn_has_come(threads):
    def items():
        yield from range(10)
        raise RuntimeError("the instrument is off")

    got = []
    with pytest.raises(RuntimeError, match="the instrument is off"):
        for result in ordered_map(lambda item: item, items()):
            got.append(result)
    assert got == list(range(10))
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 / (item - 3), range(10)))


def test_one_may_go_through_results_within_results(threads):
    """A caller who is slow to take results keeps no thread from other work."""
    outer = ordered_map(range, iter(range(40)))
    assert [sum(ordered_map(abs, inner)) for inner in outer] == [sum(range(i)) for i in range(40)]
