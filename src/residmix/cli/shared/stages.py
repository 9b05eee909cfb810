"""The stages of a command and what each may take, for its line of progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residmix.rows.course import Course

__all__ = ["converting", "drawing", "measuring", "preparing", "probing", "reading", "sampling", "under_way", "writing"]

# Seconds of one core for a gigabyte of CSV text and of Parquet, of 22 columns. Only their proportions matter: what a
# machine makes of them shows in its first stages.
LOOK, VISIT, SAMPLE = 3.3, {"text": 1.5, "other": 2.8}, {"text": 0.55, "other": 1.2}
# Gigabytes of numbers that come of one of text, or of Parquet; and seconds for a gigabyte of numbers to be written.
NUMBERS = {"text": 0.4, "other": 0.8}
CONVERTED = {".csv": 12.0, ".tsv": 12.0, ".arrow": 0.6, ".feather": 0.6}
PACKED, UNPACKED = 150.0, 3.0
DRAWN = 1.8
# Seconds that loading modules takes, for a model from a file and for a fit; below a share they had been loaded before.
LOADED, LOADED_TO_FIT, WARM = 1.05, 1.35, 0.4


def under_way(
    stages: Mapping[str, float | None], *, quiet: bool, lone: bool = False, began: float | None = None
) -> AbstractContextManager[Course]:
    """Let a command show how far it is in one line, with the time that is left of all of it.

    Parameters
    ----------
    stages, lone
        As for `residmix.rows.course.Course`.
    quiet : bool
    began : float, optional
        `process_time` before a model was loaded: what that took tells how slow this machine is.
    """
    from residmix.rows.course import on_course
    from residmix.rows.progress import Line

    loaded = 0.0 if began is None else process_time() - began
    slowness = loaded / LOADED if loaded > WARM * LOADED else 1.0
    return on_course(stages, Line(quiet=quiet), lone=lone, silent=("drawing",), slowness=slowness)


def preparing(data: str) -> float:
    """Return what it takes to load what a fit needs, and to look at the columns."""
    return LOADED_TO_FIT + reading(data) + sampling(data)


def reading(data: str) -> float:
    """Return what it takes to look at text files; others say themselves what they hold."""
    return sum(LOOK * size for kind, size in _sizes(data) if kind == "text")


def sampling(data: str) -> float:
    """Return what it takes to find some rows."""
    return sum(SAMPLE[kind] * size for kind, size in _sizes(data))


def writing(data: str, output: Path | None) -> float:
    """Return what it takes to compute something for each row, and to write that to a Parquet file."""
    return 0.0 if output is None else sum(VISIT[kind] * size for kind, size in _sizes(data))


def converting(data: str, output: Path | None) -> float:
    """Return what it takes to make another kind of file of that."""
    if output is None:
        return 0.0
    name = ".csv" if str(output) == "-" else output.name.lower()
    numbers = sum(NUMBERS[kind] * size for kind, size in _sizes(data))
    if name.endswith(".gz"):
        return PACKED * numbers
    return next((seconds for ending, seconds in CONVERTED.items() if name.endswith(ending)), 0.0) * numbers


def measuring(model: Any) -> float:
    """Return what the probes of a report on a fitted model take."""
    from residmix.plots.rows import features_of, transformer_of

    linear = transformer_of(model)
    if linear is None or not linear.design_.columns or hasattr(model, "certificate_"):
        return 0.0
    levels = [len(found.levels) if (found := linear.design_.levels_of(name)) else 0 for name in linear.design_.columns]
    return probing(len(features_of(model)), levels)


def probing(n_features: int, levels: Sequence[int]) -> float:
    """Return what probes take for so many features and columns, each of so many levels, or 0 of a number."""
    from residmix.diagnostics.costs import SAMPLE, measuring_seconds, one_by_one
    from residmix.report.gather import FOLDS, PERMUTATIONS, PROBED_FEATURES

    d = min(n_features, PROBED_FEATURES)
    groups = 1 + one_by_one(d)
    return measuring_seconds(SAMPLE, d, levels, groups=groups, n_splits=FOLDS, n_permutations=PERMUTATIONS)


def drawing(output: Path | None) -> float:
    """Return what pictures take."""
    return 0.0 if output is None or output.suffix.lower() == ".json" else DRAWN


def _sizes(data: str) -> list[tuple[str, float]]:
    """Return kind and gigabytes of the files of DATA; nothing if there's nothing that has a size."""
    from residmix.sources.files import find_files

    try:
        paths = find_files(data) if data != "-" else []
        sizes = [(path.name.lower(), path.stat().st_size / 1e9) for path in paths if path.is_file()]
    except OSError:
        return []
    found = []
    for name, size in sizes:
        text = name.removesuffix(".gz").endswith((".csv", ".tsv"))
        found.append(("text" if text else "other", size * (UNPACKED if name.endswith(".gz") else 1.0)))
    return found
