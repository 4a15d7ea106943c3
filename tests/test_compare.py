import csv
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_line_error
from programs import run

import compare

HOSTILE = "\"><img src=x onerror=document.title=1>'é"


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def made_up(wrong: dict[int, int], count: int = 30) -> compare.Run:
    """Predictions of ten classes, truth id % 10, right but for `wrong`: id -> guess."""
    ids = np.arange(count)
    guess = np.array([wrong.get(i, i % 10) for i in ids])
    return compare.Run("made up", Path("made up"), ids, ids % 10, guess, np.eye(10)[guess])


def test_equal_labels_are_made_unique():
    runs = [made_up({}) for _ in range(3)]
    runs[0].path, runs[1].path, runs[2].path = Path("a/run"), Path("b/run"), Path("b/run")
    compare.make_labels_unique(runs)
    assert [run.label for run in runs] == ["a/run", "b/run (2)", "b/run (3)"]


def test_verdicts_of_one_two_and_three_runs():
    a, b, c = made_up({0: 1, 1: 2, 2: 3, 3: 4}), made_up({0: 1, 1: 5, 4: 1}), made_up({0: 1, 1: 9})
    assert compare.verdicts([a]).tolist()[:5] == ["wrong"] * 4 + ["all right"]
    two = ["all wrong, same guess", "all wrong, different", "fixed", "fixed", "broken", "all right"]
    assert compare.verdicts([a, b]).tolist()[:6] == two
    three = two[:2] + ["disagree"] * 3 + ["all right"]
    assert compare.verdicts([a, b, c]).tolist()[:6] == three


def test_mcnemar_agrees_with_the_binomial_distribution():
    # By hand: 1 against 7 gives 2 (1 + 8) / 256; 5 against 5 is no evidence at all.
    pair = compare.Pair(made_up({0: 1}), made_up({i: 0 for i in range(1, 8)}))
    assert (pair.fixed, pair.broken, pair.both_wrong) == (1, 7, 0)
    assert pair.p_value == pytest.approx(18 / 256) and "no evidence" in pair.verdict_text
    even = compare.Pair(made_up({i: 0 for i in range(1, 6)}), made_up({i: 0 for i in range(11, 16)}))
    assert even.p_value == 1
    far = compare.Pair(made_up({i: (i + 1) % 10 for i in range(200)}, 200), made_up({}, 200))
    assert far.p_value < 1e-15 and far.verdict_text == "made up is better, p < 1e-15"


def test_summary_in_the_terminal_agrees_with_the_files(finished, tmp_path):
    files = [read(finished / "predictions" / f"epoch-00{epoch}.csv") for epoch in (1, 2)]
    wrong = [{row["id"] for row in rows if row["guess"] != row["truth"]} for rows in files]
    result = run("compare.py", f"{finished}@1", finished, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [
        [f"001@{n}", str(len(wrong[n - 1]))] for n in (1, 2)
    ]
    fixed, broken, both = len(wrong[0] - wrong[1]), len(wrong[1] - wrong[0]), len(wrong[0] & wrong[1])
    assert f"{fixed} fixed, {broken} broken, {both} wrong in both" in lines[3]
    assert lines[-1].startswith("page  compare.html") and (tmp_path / "compare.html").stat().st_size > 1e6


def test_one_csv_without_pictures(finished, tmp_path):
    shutil.copy(finished / "predictions" / "epoch-002.csv", tmp_path / "mine.csv")
    result = run("compare.py", "mine.csv", cwd=tmp_path)
    assert_one_line_error_after_summary(result, "no pictures", "--no_images")
    assert os.listdir(tmp_path) == ["mine.csv"]
    result = run("compare.py", "mine.csv", "--no_images", "--out", "page.html", cwd=tmp_path)
    assert result.returncode == 0 and "<title>mine</title>" in (tmp_path / "page.html").read_text()


def assert_one_line_error_after_summary(result, *words):
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words), result.stderr


def test_bad_input_ends_in_one_line(main, finished, tmp_path):
    rows = read(finished / "predictions" / "epoch-002.csv")
    changed = [dict(rows[0], truth=(int(rows[0]["truth"]) + 1) % 10), *rows[1:]]
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "folder").mkdir()
    cases = {
        ("missing.csv",): ["missing.csv"],
        ("folder",): ["folder", "not a run"],
        (f"{finished}@7",): ["no epoch 7", "1, 2"],
        ("empty.csv",): ["empty.csv"],
        ("binary.csv",): ["binary.csv"],
        (write(tmp_path / "columns.csv", [{"id": 0, "guess": 1}]),): ["columns.csv", "score_0", "truth"],
        (write(tmp_path / "word.csv", [dict(rows[0], score_3="high"), *rows[1:]]),): [
            "line 2",
            "score_3",
            "high",
        ],
        (write(tmp_path / "infinite.csv", [dict(rows[0], id="1e999")]),): ["id cannot be 'inf'"],
        (write(tmp_path / "class.csv", [dict(rows[0], guess=10)]),): ["guess", "10"],
        (write(tmp_path / "twice.csv", [*rows, rows[5]]),): ["id 5 twice"],
        (finished, write(tmp_path / "short.csv", rows[:-1])): ["id 499", "short"],
        (finished, write(tmp_path / "other.csv", changed)): ["truth of id 0", "other"],
    }
    for arguments, words in cases.items():
        result = main("compare.py", *arguments, "--out", "page.html", cwd=tmp_path)
        assert_one_line_error(result, *words)
    assert not (tmp_path / "page.html").exists()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium that can reach nothing but files."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    for flag in (
        "headless=new",
        "no-sandbox",
        "no-first-run",
        "window-size=1280,900",
        *(f"disable-{x}" for x in quiet),
    ):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def open_page(browser, path: Path) -> None:
    browser.get("about:blank")
    browser.get(path.as_uri() if isinstance(path, Path) else path)
    wait(browser, "return document.documentElement.dataset.ready")


def wait(browser, script: str, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := browser.execute_script(script):
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {script}")


def shown(browser) -> int:
    """How many images the table's filter leaves, by its own line below."""
    info = browser.execute_script("return document.querySelector('.dt-info').textContent")
    return int(info.split(" of ")[1].split()[0].replace(",", "")) if " of " in info else 0


@pytest.fixture(scope="session")
def page(once, finished, small_dir) -> Path:
    """Two epochs side by side; the second run has a hostile name, class names and settings."""

    def fill(folder: Path) -> None:
        shutil.copytree(finished, folder / HOSTILE, ignore=shutil.ignore_patterns("wandb"))
        config = json.loads((finished / "config.json").read_text())
        config |= {
            "classes": [f"</script><b>{k}" for k in range(10)],
            "schedule": HOSTILE * 20,
            "run_dir": HOSTILE,
        }
        (folder / HOSTILE / "config.json").write_text(json.dumps(config))
        result = run("compare.py", f"{HOSTILE}@1", finished, "--data_dir", small_dir, cwd=folder)
        assert result.returncode == 0, result.stderr

    return once("page", fill) / "compare.html"


@pytest.mark.xdist_group("browser")
def test_page_agrees_with_the_files_and_asks_for_nothing(browser, page, finished, tmp_path):
    open_page(browser, page)
    before, after = (read(finished / "predictions" / f"epoch-00{epoch}.csv") for epoch in (1, 2))
    pairs = list(zip(before, after))
    assert shown(browser) == sum(a["guess"] != a["truth"] or b["guess"] != b["truth"] for a, b in pairs)

    buttons = "[...document.querySelectorAll('.confusion button')]"
    cells = browser.execute_script(f"return {buttons}.map(b => ({{...b.dataset, n: +b.textContent}}))")
    for cell in [c for c in cells if c["truth"] != c["guess"]][:6]:
        rows = before if cell["run"] == "0" else after
        expected = sum(row["truth"] == cell["truth"] and row["guess"] == cell["guess"] for row in rows)
        where = "".join(f'[data-{name}="{cell[name]}"]' for name in ("run", "truth", "guess"))
        browser.execute_script(f"document.querySelector('button{where}').click()")
        assert wait(
            browser, f"return document.querySelector('.dt-info').textContent.includes(' of {expected} ')"
        )
        assert cell["n"] == expected

    browser.execute_script("document.getElementById('everything').click()")
    assert shown(browser) == 500
    group = "const g = document.getElementById('group'); g.value = g.options[3].value; g.onchange();"
    browser.execute_script(group)  # the second run's guess
    heads = browser.execute_script(
        "return [...document.querySelectorAll('tr.dtrg-group')].map(r => r.textContent)"
    )
    assert heads[0].endswith(f"0: {sum(row['guess'] == '0' for row in after)} images")

    # A view travels in the address.
    open_page(browser, browser.current_url)
    assert browser.execute_script("return document.querySelector('tr.dtrg-group').textContent") == heads[0]

    assert browser.execute_script("return document.title").startswith(f"{HOSTILE}@1 vs 001@2")
    assert not browser.execute_script("return document.querySelector('img[src=x], #predictions b')")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob", "about"}


@pytest.mark.xdist_group("browser")
def test_page_sorts_queries_and_downloads(browser, page, finished, tmp_path):
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    open_page(browser, page)
    after = read(finished / "predictions" / "epoch-002.csv")
    scores = sorted(float(row[f"score_{row['truth']}"]) for row in after)
    script = """
        const done = arguments[0];
        (async () => {
            const Api = (await window[Object.keys(window).find(k => /^_itables_\\d/.test(k))]).default.Api;
            const table = new Api('#predictions');
            table.searchBuilder.rebuild({criteria: [], logic: 'AND'});
            const last = table.columns().count() - 1;  // its data are [shown, sorted by]
            table.order([last, 'asc']).draw();
            const sorted = table.column(last, {order: 'applied'}).data().toArray().map(v => v[1]);
            table.searchBuilder.rebuild({logic: 'AND', criteria:
                [{condition: '<', data: 'id', type: 'num', value: ['100']},
                 {condition: '>=', data: 'id', type: 'num', value: ['40']}]});
            table.search('fixed').draw();
            done([sorted, document.querySelector('.dt-info').textContent]);
        })();"""
    values, info = browser.execute_async_script(script)
    assert values == pytest.approx(scores, abs=1e-4)
    before = read(finished / "predictions" / "epoch-001.csv")
    fixed = [
        a["id"]
        for a, b in zip(before, after)
        if a["guess"] != a["truth"] and b["guess"] == b["truth"] and 40 <= int(a["id"]) < 100
    ]
    assert f" of {len(fixed)} " in info
    browser.execute_script(
        "[...document.querySelectorAll('button')].find(b => /CSV/.test(b.textContent)).click()"
    )
    deadline = time.monotonic() + 10
    while not (files := list(tmp_path.glob("*.csv"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted(row["id"] for row in read(files[0])) == sorted(fixed)
