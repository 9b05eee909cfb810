"""A machine where compiled code can't be kept, or what was kept is damaged: everything runs, and says so once."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import residmix

pytestmark = pytest.mark.slow  # each starts processes that import and compile everything anew

# large enough for compiled loops
SCRIPT = """
import warnings
import numpy as np

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from residmix import GaussianMixture, Residualizer
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 4)) + 4.0 * rng.integers(0, 2, (6000, 1))
    print(GaussianMixture(2, covariance_type="diag", random_state=0).fit(X).lower_bound_.hex())
    M = rng.normal(size=(6000, 2))
    print(float(np.abs(Residualizer().fit_transform(np.hstack([X] * 10), metadata=M)).sum()).hex())
for warning in caught:
    print("warning", warning.category.__name__, str(warning.message).splitlines()[0])
"""


def run(*before, path=None, script=SCRIPT, **variables):
    """Return the numbers, and what was warned of."""
    environment = {**os.environ, "PYTHONPATH": str(path or Path(residmix.__file__).parents[1]), **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(
        [*before, sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    return [line for line in lines if "warning" not in line], [line for line in lines if "warning" in line]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a folder of compiled code, with the numbers that it gave."""
    folder = tmp_path_factory.mktemp("cache")
    numbers, told = run(NUMBA_CACHE_DIR=str(folder))
    assert not told and list(folder.rglob("*.nbc"))
    return folder, numbers


def test_without_any_place_to_write_to_all_runs_with_one_warning(cache, tmp_path):
    package = tmp_path / "site" / "residmix"
    shutil.copytree(Path(residmix.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (*(path for path in package.rglob("*") if path.is_dir()), package, package.parent):
        folder.chmod(0o555)
    before = []
    if os.geteuid() == 0:  # who may write everywhere, unless that is taken away
        before = [shutil.which("setpriv"), "--bounding-set=-dac_override,-dac_read_search"]
        if before[0] is None:
            pytest.skip("root can't be kept from writing without setpriv")
    lacking = {
        "HOME": str(package.parent),
        "XDG_CACHE_HOME": None,
        "NUMBA_CACHE_DIR": None,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        numbers, told = run(*before, path=package.parent, **lacking)
    finally:
        for folder in (package.parent, package, *(path for path in package.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
    assert numbers == cache[1]
    assert len(told) == 1 and "can't be kept on disk" in told[0] and "NUMBA_CACHE_DIR" in told[0]


EVERYTHING = """
import os, tempfile, warnings
for place in ("/", os.path.expanduser("~"), os.path.dirname(__import__("residmix").__file__)):
    try:
        open(os.path.join(place, "can-i-write"), "w").close()
    except OSError:
        continue
    raise SystemExit(f"{place} can be written to, which this test must not allow")
room = os.statvfs(tempfile.gettempdir())
assert room.f_bavail * room.f_frsize < 20e6
# rows too few for compiled loops, which the test before looks at: they take a minute to compile for all this
""" + SCRIPT.replace("6000", "300").replace(
    "for warning in",
    """
    from residmix.cli import main
    main(["demo", "-q"], standalone_mode=False)
    print(sorted(os.listdir("residmix-demo")))
    import importlib.util
    if importlib.util.find_spec("torch"):
        from residmix.nn import MDNRegressor
        network = MDNRegressor(n_components=1, n_members=1, hidden=(4,), max_epochs=20, random_state=0)
        print(network.fit(X[:60], X[:60, 0], metadata=M[:60]).predict(X[:5], metadata=M[:5]).shape)
for warning in""",
)

# A read-only root with 16 MB of temporary files, and no privilege that would get around it.
BARE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=16m tmpfs "$1"
mount -o remount,bind,ro /
cd "$1"
shift
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def bare_machine(folder):
    """Return what makes a process run on such a machine, or None where that isn't possible."""
    if not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return None
    command = [shutil.which("unshare"), "--mount", "sh", "-c", BARE, "bare", str(folder)]
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else None


def test_a_user_without_home_and_cache_in_a_read_only_root_runs_demo_fits_and_networks(tmp_path):
    command = bare_machine(tmp_path)
    if command is None:
        pytest.skip("needs root with unshare and setpriv; the test before this one is the stand-in")
    lacking = {
        "HOME": "/nonexistent",
        "TMPDIR": str(tmp_path),
        "XDG_CACHE_HOME": None,
        "NUMBA_CACHE_DIR": None,
        "MPLCONFIGDIR": None,
        "TORCHINDUCTOR_CACHE_DIR": None,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    lines, told = run(*command, script=EVERYTHING, **lacking)
    network = ["(5,)"] if importlib.util.find_spec("torch") else []  # the core has tests without
    assert lines[2:] == ["['penguins.safetensors', 'report.html']", *network]
    assert len([line for line in told if "can't be kept on disk" in line]) <= 1


@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_files_that_were_cut_off_are_compiled_anew_and_replaced(cache, kind, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache[0], folder)
    for number, file in enumerate(sorted(folder.rglob(kind))):
        with file.open("r+b") as opened:
            opened.truncate(int([0.0, 0.5, 0.99][number % 3] * file.stat().st_size))
    numbers, told = run(NUMBA_CACHE_DIR=str(folder))
    assert numbers == cache[1]
    assert len(told) == 1 and "can't be kept on disk or read from there" in told[0]
    assert run(NUMBA_CACHE_DIR=str(folder)) == (cache[1], [])


def test_a_full_disk_is_told_once(cache):
    # every write to /dev/full fails as on a full disk
    full = """
import builtins
_open = builtins.open
builtins.open = lambda path, *a, **k: _open("/dev/full" if ".nb" in str(path) and "wb" in a else path, *a, **k)
"""
    numbers, told = run(script=full + SCRIPT, NUMBA_CACHE_DIR=str(cache[0] / "other"))
    assert numbers == cache[1]
    assert len(told) == 1 and "No space left on device" in told[0]
