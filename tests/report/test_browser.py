"""The page in a browser: it asks for nothing, nothing complains or sticks out, pictures are legible on a phone."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.data import penguins

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to look at pages (apt-get install chromium)"),
]

MEASURE = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="f" style="width:%dpx;height:60000px;border:0" src="%s"></iframe>
<pre id="out"></pre><script>
document.getElementById("f").onload = function () {
  const inside = this.contentDocument, root = inside.documentElement;
  const sizes = [...inside.querySelectorAll("svg text")].map(
    (t) => parseFloat(inside.defaultView.getComputedStyle(t).fontSize)
      * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b));
  const wide = [...inside.querySelectorAll("body *")].filter(
    (e) => !e.closest(".scroll, svg, pre") && e.getBoundingClientRect().right > root.clientWidth + 1);
  document.getElementById("out").textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, smallest: Math.min(...sizes), texts: sizes.length,
    wide: wide.map((e) => e.tagName + "." + e.className), scripts: inside.scripts.length,
    unnamed: [...inside.querySelectorAll("svg")].filter((s) => !s.getAttribute("aria-label")).length,
    loose: [...inside.querySelectorAll("th")].filter((t) => !t.getAttribute("scope")).length,
    ink: inside.defaultView.getComputedStyle(inside.body).color});
};
</script>"""


def looked_at(page, tmp_path, width, *options):
    """Return what the page measures in a window of `width`, and what the browser says."""
    frame = tmp_path / f"frame{width}.html"
    frame.write_text(MEASURE % (width, page.name), encoding="utf-8")
    log = tmp_path / f"net{width}.json"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
               "--disable-background-networking", "--disable-component-update",
               "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
               f"--log-net-log={log}", "--virtual-time-budget=4000", *options, "--dump-dom",
               frame.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    urls = re.findall(r'"url":"(https?:[^"]+)"', log.read_text(encoding="utf-8"))
    own = re.compile(r"https?://[^/]*(?:google\.com|gvt1\.com|update\.googleapis\.com)[/:]")  # the browser's
    asked = [url for url in urls if not own.match(url)]
    return json.loads(html.unescape(found[1])), console, asked


@pytest.fixture(scope="module", params=["penguins", "hostile"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    if request.param == "penguins":
        table = penguins()
        features = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
        model = rm.ResidualMixture(3, formula="C(sex) + C(island)", features=features, random_state=0).fit(table)
        return model.report(folder / "p.html", table, reference="species")
    rng = np.random.default_rng(0)
    names = ["<script>alert(1)</script>", r"$\frac{a}{b}$", "x" * 150, "\u202eright to left", "年齢と性別", "سن"]
    table = pd.DataFrame({name: rng.normal(size=200) for name in names})
    table["site " + "y" * 100] = rng.choice(["<b>a</b>", "z" * 120, "مركز"], 200)
    formula = f"`{table.columns[-1]}`"
    settings = {"covariance_type": "diag", "formula": formula, "features": names, "random_state": 0}
    model = rm.ResidualMixture(2, **settings).fit(table)
    return model.report(folder / "h.html", table)


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_is_quiet_asks_for_nothing_and_fits(page, width, tmp_path):
    shutil.copy(page, tmp_path)
    found, console, asked = looked_at(tmp_path / page.name, tmp_path, width)
    assert not console
    assert not asked
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["scripts"] == 0
    assert found["unnamed"] == found["loose"] == 0
    assert found["texts"] > 50
    assert found["smallest"] >= (8 if width < 400 else 10)


def test_the_page_follows_the_reader_into_the_dark(page, tmp_path):
    shutil.copy(page, tmp_path)
    light, *_ = looked_at(tmp_path / page.name, tmp_path, 1400)
    dark, *_ = looked_at(tmp_path / page.name, tmp_path, 1400, "--blink-settings=preferredColorScheme=0")
    assert (
        sum(map(int, re.findall(r"\d+", light["ink"])[:3]))
        < 200
        < 600
        < sum(map(int, re.findall(r"\d+", dark["ink"])[:3]))
    )


def test_a_page_that_asks_and_complains_is_noticed(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='margin:0'><svg><text>a</text></svg><img src='http://127.0.0.1:9/x.png'>"
        "<div style='width:3000px'>x</div><script>console.error('no')</script>",
        encoding="utf-8",
    )
    found, console, asked = looked_at(bad, tmp_path, 360)
    assert console
    assert asked
    assert found["scroll"] > 360
    assert found["wide"]
