"""All benchmarks of docs/benchmarks.md: run them, keep what they printed, and make the page say so.

    python -m benchmarks                    every command of the page whose peers are installed
    python -m benchmarks em_speed starts    those whose command has one of these words
    python -m benchmarks --short            ratios in a few minutes for whoever changes a kernel; nothing is written
    python -m benchmarks --list             the commands, with when and where each was last run

The page's console blocks are the list of benchmarks; the text block behind each is replaced by what the command
printed, and the table at the page's top is made anew. `benchmarks/results.json` keeps date, commit, processor, load,
versions and output of each; `benchmarks/peers.txt` the peers' versions, to be installed with pip.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
KEPT = Path(__file__).parent / "results.json"
PEERS = Path(__file__).parent / "peers.txt"
BLOCK = re.compile(
    r"```console\n(?P<command>[^\n]*python benchmarks/[^\n]*)\n```\n\n```text\n(?P<output>.*?)\n```\n", re.DOTALL
)
TABLE = re.compile(r"<!-- summary -->\n.*?<!-- end of summary -->\n", re.DOTALL)
# How many times our time a peer took, as each script prints it.
NUMBER = r" *([\d.]+) ?x"
RATIOS = {
    "em_speed": {"scikit-learn": "scikit-learn" + NUMBER, "oneDAL": "oneDAL" + NUMBER},
    "em_single": {"float64": "float64" + NUMBER, "oneDAL's float32": "oneDAL's float32" + NUMBER},
    "em_peers": {name: rf"{name} +[\d.]+ ms/iteration" + NUMBER for name in ("pomegranate", "Spark mllib", "Spark ml")},
    "em_defaults": {
        "scikit-learn": r"scikit-learn +[\d.]+ s \(\S+\)" + NUMBER,
        "with one BLAS thread": r"one thread +[\d.]+ s" + NUMBER,
        "ten starts of its": r"ten starts +[\d.]+ s \(\S+\)" + NUMBER,
    },
    "em_converge": {"scikit-learn": r"s \(-[\d.]+\):" + NUMBER},
    "residualize_speed": {"scikit-learn": "fit_transform [\\d.]+ s:" + NUMBER},
    "residualize_lstsq": {
        "numpy.linalg.lstsq": "lstsq [\\d.]+ s, residmix [\\d.]+ s:" + NUMBER,
        "four lines of normal equations": "equations [\\d.]+ s, residmix [\\d.]+ s:" + NUMBER,
    },
    "residualize_factors": {"pyfixest": "s:" + NUMBER},
    "association_speed": {"one forest of 100 trees": r"trees [\d.]+ s:" + NUMBER},
    "residualize_scanpy": {"scanpy": "in place [\\d.]+ s:" + NUMBER},
}
SHORT = [
    "python benchmarks/em_speed.py --iterations 5 --rounds 3 --shapes 100000x8x8 20000x128x8 1000000x4x5",
    "python benchmarks/em_defaults.py",
    "python benchmarks/residualize_speed.py",
    "python benchmarks/residualize_factors.py",
    "python benchmarks/em_gaps.py",
    "python benchmarks/em_cells.py",
    "python benchmarks/joint_speed.py",
]


def ran(command: str) -> tuple[dict[str, object], bool]:
    """Run a command from the root; return what is kept of it, and whether it succeeded."""
    words = shlex.split(command)
    where = words.index("python")
    settings = dict(word.split("=", 1) for word in words[:where])
    load, began = os.getloadavg()[0], time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words[where + 1 :]], cwd=ROOT, text=True, capture_output=True, env={**os.environ, **settings}
    )
    record: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": said("git", "rev-parse", "--short", "HEAD")
        + ("+" if said("git", "status", "--porcelain", "src") else ""),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
        "output": done.stdout.rstrip(),
    }
    if done.returncode:
        print(f"  failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}", flush=True)
    return record, done.returncode == 0


def said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout.strip()


def processor() -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of ourselves and of whatever peer is installed."""
    peers = [re.split(r"[=<>]", line)[0].strip() for line in PEERS.read_text().splitlines() if line[:1].isalpha()]
    found = {"python": platform.python_version()}
    for name in ["residmix", "numpy", "scipy", "scikit-learn", "numba", "torch", *peers]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def ratios(command: str, output: str) -> list[str]:
    """Return the range of each peer's ratios in what was printed, in words."""
    script = re.findall(r"benchmarks/(\w+)\.py", command)[0]
    found = {peer: [float(x) for x in re.findall(how, output)] for peer, how in RATIOS.get(script, {}).items()}
    return [f"{peer} {min(each):g}" + f" to {max(each):g}" * (len(each) > 1) for peer, each in found.items() if each]


def summary(page: str, kept: dict[str, dict[str, object]]) -> str:
    """Return the table for the page's top: a row for each section that has ratios."""
    rows: dict[str, tuple[list[str], str]] = {}
    for match in BLOCK.finditer(page):
        heading = re.findall(r"^## (.*)$", page[: match.start()], re.MULTILINE)[-1]
        record = kept.get(match["command"])
        where = f"{record['date']}, {record['commit']}, {record['processor']}" if record else "an earlier version"
        rows.setdefault(heading, ([], where))[0].extend(ratios(match["command"], match["output"]))
    lines = ["| what | times our time | measured |", "|---|---|---|"]
    for heading, (found, where) in rows.items():
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        if found:
            lines.append(f"| [{heading}](#{anchor}) | {'; '.join(found)} | {where} |")
    return "<!-- summary -->\n\n" + "\n".join(lines) + "\n\n<!-- end of summary -->\n"


def write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="run commands that have one of these words")
    parser.add_argument("--short", action="store_true", help="a few minutes; nothing is written")
    parser.add_argument("--list", action="store_true", help="show the commands")
    options = parser.parse_args()
    if options.short:
        for command in SHORT:
            print(f"$ {command}", flush=True)
            print(ran(command)[0]["output"], end="\n\n", flush=True)
        return
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    failed = 0
    for command in [match["command"] for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]:
        if options.words and not any(word in command for word in options.words):
            continue
        record = kept.get(command)
        print(
            f"$ {command}" + (f"  ({record['date']}, {record['commit']})" if record and options.list else ""),
            flush=True,
        )
        if options.list:
            continue
        record, fine = ran(command)
        failed += not fine
        if fine:
            kept[command] = record
            page = PAGE.read_text(encoding="utf-8")
            new = f"```console\n{command}\n```\n\n```text\n{record['output']}\n```\n"
            page = BLOCK.sub(
                lambda match, new=new, command=command: new if match["command"] == command else match[0], page
            )
            write(PAGE, TABLE.sub(lambda _, page=page: summary(page, kept), page))
            write(KEPT, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            print(record["output"], flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
