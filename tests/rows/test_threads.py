"""BLAS keeps to one thread inside, whichever thread asks; whoever leaves last gives back what there was."""

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from residmix.rows.threads import lazy, one_blas_thread


def threads_of_blas():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def elsewhere(function):
    """Run a function in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def inside():
    with one_blas_thread():
        return threads_of_blas()


@pytest.fixture
def two():
    """Two BLAS threads, as this thread asked for them first."""
    with one_blas_thread(), threadpool_limits(2, user_api="blas"):
        pass  # all libraries are loaded, and this thread has been the one that threadpoolctl heeds
    limit = threadpool_limits(2, user_api="blas")
    if set(threads_of_blas()) != {2}:
        pytest.skip("this BLAS has no second thread")
    yield
    limit.restore_original_limits()


def test_any_thread_limits_and_restores(two):
    assert set(inside()) == {1} and set(threads_of_blas()) == {2}
    assert set(elsewhere(inside)) == {1} and set(threads_of_blas()) == {2}
    assert set(inside()) == {1} and set(threads_of_blas()) == {2}


def test_whoever_leaves_last_restores(two):
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with one_blas_thread():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    with one_blas_thread():
        thread.start()
        entered.wait()
    assert set(threads_of_blas()) == {1}
    leave.set()
    thread.join()
    assert set(threads_of_blas()) == {2}


class Slow:
    """Something whose value takes as long as somebody wants."""

    def __init__(self, wait):
        self.wait, self.computed = wait, 0

    @lazy
    def value(self):
        self.computed += 1
        self.wait()
        return 3


def test_a_lazy_property_is_computed_once_and_waits_for_no_other_object():
    entered, leave = threading.Event(), threading.Event()
    slow, quick = Slow(lambda: (entered.set(), leave.wait(60))), Slow(lambda: None)
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    entered.wait()
    assert quick.value == quick.value == 3 and quick.computed == 1
    assert thread.is_alive()  # with one lock for all, the other one had to end first
    leave.set()
    thread.join()
    assert slow.value == 3 and slow.computed == 1
