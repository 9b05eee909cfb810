"""Work that is killed at any moment leaves files that are old or new, goes on to the same bits, and leaves no others.

A run takes a few kills, over all of: fit with a checkpoint, save, transform, labels, report; from Python and by the
command. Half of them come at the n-th thing that the process does with a file, half at some moment of the clock, and
what is claimed holds at any moment. More, by one command:

    RESIDMIX_KILLS=50 pytest -m "" tests/test_kills.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from residmix.persistence import read

KILLS = int(os.environ.get("RESIDMIX_KILLS", "8"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork, which makes many kills cheap")

# Forks a child for each line it reads, so that imports are paid for once. A child ends itself at its n-th event with a
# file of the folder, or the server ends it after some seconds. Answers with what the child came to.
SERVER = """
import json, os, select, signal, sys, time, warnings
warnings.simplefilter("ignore")
import residmix as rm
import residmix.cli.fit, residmix.cli.transform, residmix.cli.report, residmix.report.build, residmix.report.gather
import residmix.anndata, residmix.diagnostics.association, sklearn.linear_model, sklearn.ensemble, sklearn.cluster
import pyarrow.csv, pyarrow.parquet, safetensors.numpy, pandas
from residmix.cli import main

def python():
    data = rm.scan("x.parquet")
    options = dict(formula="site", tol=0, max_iter=8, n_init=2, random_state=1)
    model = rm.ResidualMixture(2, checkpoint="fit.ckpt", **options).fit(data)
    rm.save(model, "model")
    model.residuals(data, out="left.parquet")
    model.report("report.html")

def command():
    fit = "fit x.parquet --formula site -k 2 --seed 1 --checkpoint fit.ckpt --resume -q --force -o model"
    main((fit + " --residuals left.csv.gz --labels labels.csv").split(), standalone_mode=False)
    main("transform model x.parquet -o transformed.arrow -q --force".split(), standalone_mode=False)
    main("report model -o report.json -q --force".split(), standalone_mode=False)

def watched(last):
    seen = [0]
    names = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
    names |= {"tempfile.mkstemp", "tempfile.mkdtemp"}
    def hook(name, arguments):
        if name in names and isinstance(arguments[0], (str, os.PathLike)):
            path = os.path.join(os.getcwd(), os.fspath(arguments[0]))
            if os.path.dirname(path).startswith(os.getcwd()):
                seen[0] += 1
                if seen[0] == last:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return seen

for line in sys.stdin:
    kind, folder, event, seconds = json.loads(line)
    told, tell = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        seen = watched(event)
        {"python": python, "command": command}[kind]()
        os.write(tell, str(seen[0]).encode())
        os._exit(0)
    os.close(tell)
    if seconds is not None and not select.select([told], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    events = os.read(told, 20)
    os.close(told)
    print(json.dumps([status, int(events or 0), time.monotonic() - began]), flush=True)
"""

OUTPUTS = {
    "python": ("model", "left.parquet", "report.html"),
    "command": ("model", "left.csv.gz", "labels.csv", "report.json", "transformed.arrow"),
}


@pytest.fixture(scope="module")
def work():
    """Return a function that does the work, or what there is time for."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, text=True) as server:

        def call(kind, folder, event=0, seconds=None):
            server.stdin.write(json.dumps([kind, str(folder), event, seconds]) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield call
        server.stdin.close()


def contents(folder):
    """Return the files of a folder, and of a folder in it that a killed process had for a moment only its name."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in sorted(folder.iterdir())}


def filled(folder, files):
    """Bring a folder to such files and no others."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", list(OUTPUTS))
@pytest.mark.slow
def test_killed_at_any_moment_files_are_old_or_new_and_the_next_run_ends_as_if_nothing_had_been(kind, work, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=list("abc")).assign(site=rng.choice(["u", "v"], 300))
    table["a"] += 3 * rng.integers(0, 2, 300) + (table["site"] == "u")
    table.to_parquet(tmp_path / "x.parquet")
    old = dict.fromkeys(OUTPUTS[kind], b"old") | {"x.parquet": (tmp_path / "x.parquet").read_bytes()}
    filled(tmp_path, old)
    status, events, seconds = work(kind, tmp_path)
    new = contents(tmp_path)
    assert status == 0 and set(new) == set(old) and all(new[name] != b"old" for name in OUTPUTS[kind])
    assert events > 40
    chance, killed, resumed, between = random.Random(kind), 0, 0, 0
    for i in range(-(-KILLS // 2)):
        filled(tmp_path, old)
        moment = {"event": chance.randint(1, events)} if i % 2 == 0 else {"seconds": chance.uniform(0, seconds)}
        killed += work(kind, tmp_path, **moment)[0] == -signal.SIGKILL
        now = contents(tmp_path)
        for name in old:
            assert now[name] in (old[name], new[name]), name
        between += any(now[name] != old[name] for name in old) and any(now[name] != new[name] for name in old)
        if "fit.ckpt" in now:
            resumed += 1
            assert read(tmp_path / "fit.ckpt").ended is not None  # whole, at any moment
        assert work(kind, tmp_path)[0] == 0
        assert contents(tmp_path) == new
    print(f"{kind}: {killed} killed, {resumed} went on from a checkpoint, {between} between two files")
    assert killed >= KILLS // 4  # those at an event were, whatever the clock said


def test_the_control_writes_in_place_and_is_found_torn(tmp_path):
    script = "import os, signal\nf = open('model', 'w'); f.write('ne'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "model").write_text("old")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert (tmp_path / "model").read_text() not in ("old", "new")
