"""Check that the workers of a cluster have the same packages and kind of processor as this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from residmix.errors import ResidmixWarning, warn

__all__ = ["await_workers", "check_workers", "environment"]


# Those that have been looked at, of each client.
_SEEN: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def environment() -> dict[str, str | None]:
    """Return the versions of what computes, and the vector width of the processor, in the process that calls it."""
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    found = {name: of(name) for name in ("residmix", "numpy", "scipy", "numba", "pyarrow")}
    numpy = import_module("numpy._core" if int((found["numpy"] or "2").split(".")[0]) > 1 else "numpy.core")
    features = numpy._multiarray_umath.__cpu_features__
    widths = (("AVX512F", "512 bits"), ("AVX2", "256 bits"), ("SVE", "SVE"))
    found["vector width"] = next((bits for name, bits in widths if features.get(name)), "128 bits")
    return found


# So it travels by value: a worker with another version of the package, or none, has no such function.
environment.__module__ = "__main__"


def await_workers(client: Any) -> dict[str, int]:
    """Return the cluster's workers and their threads; if there are none, say so and wait for one."""
    threads: dict[str, int] = client.nthreads()
    if not threads:
        address = getattr(getattr(client, "scheduler", None), "address", "?")
        warn(
            f"the cluster at {address} has no workers, so this waits until there is one. Start some, for example "
            "with cluster.scale(2)",
            ResidmixWarning,
            kind="cluster",
        )
        client.submit(int, 0, pure=False).result()  # a task to do, so that a cluster that adapts itself starts one
        threads = client.nthreads()
    return threads


def check_workers(client: Any, workers: Iterable[str]) -> None:
    """Compare workers that haven't been looked at with this process.

    Raises
    ------
    RuntimeError
        If one has another version of this package, or none.
    """
    seen = _SEEN.setdefault(client, set())
    new = [worker for worker in workers if worker not in seen]
    if not new:
        return
    answers = client.run(environment, workers=new, on_error="return")
    # one that doesn't answer is on its way out, and its successor will be asked
    found = {worker: answer for worker, answer in answers.items() if isinstance(answer, dict)}
    own = environment()
    seen.update(found)
    for name, value in own.items():
        others: dict[str | None, list[str]] = {}
        for worker, answer in found.items():
            if answer.get(name) != value:
                others.setdefault(answer.get(name), []).append(worker)
        for other, which in others.items():
            if name == "residmix":
                seen.difference_update(which)
                there = "no residmix" if other is None else f"residmix {other}"
                raise RuntimeError(
                    f"{_listed(which)} of the cluster {'have' if len(which) > 1 else 'has'} {there}, this process "
                    f"{value}; install the same version everywhere"
                )
            warn(
                f"{_listed(which)} of the cluster: {name} is {other}, but {value} in this process, so results may "
                "not be bitwise reproducible. Use the same everywhere if they must be",
                ResidmixWarning,
                kind="cluster",
                name=name,
                here=value,
                there=other,
                workers=which,
            )


def _listed(workers: list[str]) -> str:
    shown = ", ".join(workers[:3]) + (f" and {len(workers) - 3} more" if len(workers) > 3 else "")
    return f"worker {shown}" if len(workers) == 1 else f"workers {shown}"
