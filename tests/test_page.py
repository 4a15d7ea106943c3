"""The page of compare.py in headless Chromium, and in Firefox where found, with counts of its files."""

import base64
import csv
import functools
import json
import re
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from firefox import Firefox
from many_classes import Made, write_random_best
from PIL import Image
from programs import run

webdriver = pytest.importorskip("selenium.webdriver")
HOSTILE = "\"><img src=x onerror=document.title=1>'é"
FIND = (
    "const [k] = arguments, e = document.getElementById(k) ?? document.querySelector(`[data-key='${k}']`); "
)
CLASSES = ["=1+1", "</script><b>1", "a\tb", '"q"', "שלום עולם", "x" * 70, "-6", "&amp;", "@8", "9"]


class Page:
    """A browser with a page of compare.py."""

    def __init__(self, browser):
        self.browser, self.js = browser, browser.execute_script

    def open(self, path: Path | str, address: str = "") -> "Page":
        self.browser.get("about:blank")
        self.browser.get((path.as_uri() if isinstance(path, Path) else path) + address)
        self.wait("return document.documentElement.dataset.ready")
        return self

    def wait(self, script: str, seconds: float = 20):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.js(script):
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {script}")

    def click(self, key: str) -> None:
        self.js(FIND + "e.click()", key)

    def choose(self, key: str, value) -> None:
        self.js(FIND + "e.value = arguments[1]; e.onchange({ target: e });", key, str(value))

    def go_to_epoch(self, view: int) -> None:
        move = "const e = document.getElementById('epoch'); e.value = arguments[0]; "
        self.js(move + "e.oninput({ target: e }); e.onchange({ target: e });", view)

    def address(self, hash: str) -> None:
        self.js("location.hash = arguments[0]", hash)
        time.sleep(0.1)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def all(self, selector: str, get: str = "e.textContent") -> list:
        return self.js(f"return [...document.querySelectorAll(arguments[0])].map(e => {get})", selector)

    @property
    def shown(self) -> int:
        return int(self.text("#shown b").replace(",", ""))

    @property
    def ids(self) -> list[int]:
        return self.all("#list [data-id]", "Number(e.dataset.id)")

    def chips(self) -> list[int]:
        texts = self.all("#chips b")
        return [int(text.replace(",", "")) for text in texts]


@functools.cache
def models() -> dict[str, Made]:
    return {"a": Made(2000, 300, seed=1, epochs=2), "b": Made(2000, 300, seed=2)}


def chromium() -> "webdriver.Chrome":
    found, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not found or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    flags = ["headless=new", "no-sandbox", "no-first-run", *(f"disable-{x}" for x in quiet)]
    for flag in [*flags, "window-size=1280,800", "host-resolver-rules=MAP * ~NOTFOUND"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


@pytest.fixture(scope="module")
def browser():
    chrome = chromium()
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser) -> Page:
    """A page in a window of a laptop's size, without the emulations of an earlier test."""
    for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        browser.execute_cdp_cmd(command, {})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    return Page(browser)


class Files:
    """The predictions of some epochs, as numpy reads them."""

    def __init__(self, *paths: Path):
        tables = [np.genfromtxt(path, delimiter=",", names=True) for path in paths]
        self.truth = tables[0]["truth"].astype(int)
        self.guess = [table["guess"].astype(int) for table in tables]
        self.scores = [np.stack([t[f"score_{k}"] for k in range(10)], axis=1) for t in tables]
        self.wrong = [guess != self.truth for guess in self.guess]

    def chips(self) -> list[int]:
        a, b = self.wrong
        same = self.guess[0] == self.guess[1]
        masks = (a | b, ~same, a & ~b, b & ~a, a & b & same, a & b & ~same, a | True)
        return [int(mask.sum()) for mask in masks]


@pytest.fixture(scope="session")
def two(once, finished, small_dir) -> Path:
    """Two runs of two epochs; the second has other guesses, a hostile name, class names and settings."""

    def fill(folder: Path) -> None:
        other = folder / HOSTILE
        shutil.copytree(finished, other, ignore=shutil.ignore_patterns("wandb"))
        shutil.copytree(finished, folder / "first", ignore=shutil.ignore_patterns("wandb"))
        names = [other / f"predictions/epoch-00{e}.csv" for e in (1, 2)]
        texts = [path.read_text() for path in names]
        names[0].write_text(texts[1])  # the epochs in the other order
        names[1].write_text(texts[0])
        for path in (other, folder / "first"):
            config = json.loads((finished / "config.json").read_text()) | {"classes": CLASSES}
            if path == other:
                config |= {"schedule": HOSTILE * 20, "run_dir": HOSTILE}
            (path / "config.json").write_text(json.dumps(config))
        result = run("compare.py", "first", HOSTILE, "--data_dir", small_dir, cwd=folder)
        assert result.returncode == 0, result.stderr

    return once("two", fill) / "compare.html"


@pytest.fixture(scope="session")
def files(two) -> dict[int, Files]:
    """Slider position -> the files of both runs."""
    folders = two.parent / "first/predictions", two.parent / HOSTILE / "predictions"
    return {view: Files(*(f / f"epoch-00{view + 1}.csv" for f in folders)) for view in (0, 1)}


def test_answer_chips_and_matrices_agree_with_the_files_at_every_epoch(page, two, files):
    page.open(two)
    point = "section:not([hidden]) circle[data-view='0']"
    for view in (1, 0):
        if view == 0:  # a click on a point of the chart goes to its epoch
            page.js(
                "document.querySelector(arguments[0]).dispatchEvent(new Event('click', { bubbles: true }))",
                point,
            )
        now = files[view]
        any_wrong, _, fixed, broken, *_ = now.chips()
        assert page.chips() == now.chips() and page.shown == any_wrong
        answer = page.text("#answers section:not([hidden]) .answer")
        wrong = [int(mask.sum()) for mask in now.wrong]
        assert (
            f"{wrong[0]} against {wrong[1]} wrong, {fixed} fixed and {broken} broken by {HOSTILE}" in answer
        )
        for matrix in (0, 1):
            page.click(f"matrix-{matrix}")
            buttons = page.all(".matrix button", "[e.dataset.key, e.textContent]")
            cells = {key: int(n.replace(",", "")) for key, n in buttons}
            expected = {}
            for truth, guess in zip(now.truth, now.guess[matrix]):
                key = f"cell-{matrix},{truth},{guess}"
                expected[key] = expected.get(key, 0) + 1
            assert cells == expected
        groups = page.all(
            "#groups .pictures", "[e.children[0].textContent, e.querySelectorAll('.open').length]"
        )
        expected = []
        for g in range(10):
            counts = [int((now.wrong[r] & (now.guess[r] == g)).sum()) for r in (0, 1)]
            expected += [[f"{count}", count] for count in counts if any(counts)]
        assert groups == expected
        width = "Math.round(e.previousElementSibling.getBoundingClientRect().width)"
        bars = page.all("#groups .bar span", f"`${{e.textContent}} ${{{width}}}`")
        assert len({*bars}) == len({bar.split()[0] for bar in bars}) > 1  # one scale, beside any name


def test_scores_are_seen_beside_large_pictures_and_long_names(page, tmp_path):
    names = ["blue triangle", "green square", "yellow cross"]
    for run_name, seed in (("a", 0), ("b", 1)):
        rng = np.random.default_rng(seed)
        rows = [f"photos/IMG_{n:04d}.png,{names[n % 3]},{names[n % 2]}" for n in range(60)]
        rows = [f"{row},{','.join(f'{s:.3f}' for s in rng.dirichlet([1] * 3))}" for row in rows]
        head = ",".join(["id,truth,guess", *(f"score_{name}" for name in names)])
        (tmp_path / f"{run_name}.csv").write_text("\n".join([head, *rows]))
    assert run("compare.py", "a.csv", "b.csv", "--no_images", cwd=tmp_path).returncode == 0
    page.open(tmp_path / "compare.html")
    page.js("document.querySelector('#list').style.width = '709px'")  # 817 at 1280, less a picture of 96
    right = "e.getBoundingClientRect().right"
    assert max(page.all("#list td .bars", right)) <= page.all("#list", right)[0]


def test_group_shows_200_pictures_at_most(page, tmp_path):
    rows = [f"{i},1,{0 if i < 260 else 1}" for i in range(270)]
    (tmp_path / "mine.csv").write_text("\n".join(["id,guess,truth", *rows]))
    assert run("compare.py", "mine.csv", "--no_images", cwd=tmp_path).returncode == 0
    page.open(tmp_path / "compare.html")
    assert (
        page.all("#groups .pictures b") == ["260"] and page.text("#groups .pictures .hint") == "+60 images"
    )
    assert page.all("#groups .pictures", "e.querySelectorAll('button').length") == [200]
    rows = [f"{i},0,{max(1, i % 20)}" for i in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["id,guess,truth", *rows]))
    assert run("compare.py", "mine.csv", "--no_images", cwd=tmp_path).returncode == 0
    page.open(tmp_path / "compare.html")  # of more than 12 classes, the 8 most frequent
    assert page.all("#groups .line .name") == [str(k) for k in range(1, 9)]
    assert page.text("#groups .line ~ .hint") == "+11 classes"


def test_firefox_shows_and_filters_the_same(two, files, tmp_path):
    program = shutil.which("firefox") or shutil.which("firefox-esr")
    if not program:
        pytest.skip("no firefox here (Debian: apt-get install firefox-esr)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    firefox = Firefox(program, tmp_path, port)
    try:
        page = Page(firefox).open(two)
        for view in (1, 0):
            page.go_to_epoch(view)
            assert page.chips() == files[view].chips() and page.shown == page.chips()[0]
        page.address("show=all&sort=id&down=&page=3")
        assert page.ids == list(range(75, 100))
        page.click("add")
        page.choose("query-0-2", 450)
        assert page.shown == 50
    finally:
        firefox.quit()


def test_page_shows_names_as_text_and_asks_for_nothing(page, two):
    page.browser.get_log("performance"), page.browser.get_log("browser")
    page.open(two)
    page.click("chip-all")
    (title,) = page.all("#list tr:first-child .bars", "e.parentElement.title")[:1]
    starts = [f"\u2068{name}\u2069: " for name in CLASSES]  # isolated: some are written from right to left
    assert all(line.startswith(start) for start, line in zip(starts, title.split("\n"), strict=True))
    page.click("gallery")
    page.js("document.querySelector('#list .open').click()")
    assert page.js("return document.title") == f"first@2 vs {HOSTILE}@2"
    assert page.all("img, bdi :not(.cut > span, wbr), .cut > span > *") == []  # names are text
    assert page.all("#truth option")[1:] == CLASSES
    assert HOSTILE * 20 in page.text("#answers section:not([hidden]) table")
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = (json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance"))
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob", "about"}


def test_filters_add_up_and_are_undone(page, two, files):
    now = files[1]
    page.open(two)
    either = now.wrong[0] | now.wrong[1]
    t, g = next((t, g) for t, g in zip(now.truth[now.wrong[0]], now.guess[0][now.wrong[0]]))
    page.click("matrix-0")
    page.click(f"cell-0,{t},{g}")
    cell = (now.truth == t) & (now.guess[0] == g)
    assert page.shown == cell.sum()
    page.click("chip-broken")
    assert page.shown == (cell & ~now.wrong[0] & now.wrong[1]).sum()
    page.click("chip-wrong")
    page.choose("truth", 3)
    assert page.shown == (cell & (now.truth == 3)).sum()
    page.click("no-cell")
    assert page.shown == (either & (now.truth == 3)).sum()
    page.choose("guess", 5)
    assert page.shown == (either & (now.truth == 3) & ((now.guess[0] == 5) | (now.guess[1] == 5))).sum()
    page.click("clear")
    assert page.shown == 500
    page.choose("group", "guess1")
    assert page.text("tr.group") == f"guess, {HOSTILE}@2: {CLASSES[0]}, {(now.guess[1] == 0).sum()} images"
    page.choose("group", "")
    page.click("add")
    page.choose("query-0-2", 40)
    page.click("add")
    page.choose("query-1-0", "class3_1")
    page.choose("query-1-1", "<")
    page.choose("query-1-2", 0.5)
    high, low = np.arange(500) >= 40, now.scores[1][:, 3] < 0.5
    assert page.shown == (high & low).sum()
    page.choose("any", 1)
    assert page.shown == (high | low).sum()


def test_titles_sort(page, two, files):
    now = files[1]
    page.open(two, "#show=all")
    for key, values in {
        "id": np.arange(500),
        "truth": now.truth,
        "guess1": now.guess[1],
        "mistake": -np.max([np.where(w, s.max(1), 0) for w, s in zip(now.wrong, now.scores)], axis=0),
    }.items():
        page.click(f"head-{key}")
        assert page.ids == values.argsort(kind="stable")[:25].tolist(), key
    page.address("show=all")
    change = abs(np.subtract(*(s[np.arange(500), now.truth] for s in now.scores)))
    assert page.ids == (-change).argsort(kind="stable")[:25].tolist()
    page.click("last")
    assert page.ids == (-change).argsort(kind="stable")[475:].tolist()


def test_address_holds_the_view(page, two):
    page.open(two)
    page.click("chip-all")
    page.choose("truth", 3)
    page.click("head-id")
    page.click("next")
    page.go_to_epoch(0)
    assert page.all("#epoch", "[e.value, e.ariaValueText]") == [["0", "1"]]  # a screen reader says the epoch
    link, ids = page.browser.current_url, page.ids
    page.browser.back()
    page.wait("return document.getElementById('at').value === '2'")
    page.browser.back()
    page.wait("return document.querySelector('#page').textContent.startsWith('page 1 ')")
    page.browser.forward()
    page.browser.forward()
    page.wait("return document.getElementById('at').value === '1'")
    assert page.ids == ids or page.js("return location.href") == link
    assert page.open(link).ids == page.ids
    everything = page.shown
    page.address("show=all&sort=id&down=")  # a link pasted into the open page
    assert page.ids == list(range(25)) and everything < page.shown == 500
    for broken in (
        "epoch=99&show=constructor&sort=toString&cell=0,1&box=9&matrix=88&image=-4&page=1e9",
        "query=[[1,2],{}]&truth=11&group=x&map=7&size=3",
        "%E0%A4%A&query={",
        "truth=length&cell=,,&box=,,,,",
        "guess=toString&cell=length,1,1&box=0,Infinity,1,1,1",
    ):
        page.address(broken)
        assert page.shown == page.chips()[0]
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def downloaded(page: Page, folder: Path, key: str) -> list[dict]:
    for file in folder.glob("*.csv"):
        file.unlink()
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    page.click(key)
    deadline = time.monotonic() + 10
    # Chromium creates the file empty, and replaces it by the whole one at the end.
    while not (found := [file for file in folder.glob("*.csv") if file.stat().st_size]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with open(found[0], newline="") as file:
        return list(csv.DictReader(file))


def test_downloads_are_exact_and_safe(page, two, files, tmp_path):
    page.open(two, "#show=all&sort=id&down=")
    rows = downloaded(page, tmp_path, "csv")
    now = files[1]
    assert len(rows) == 500
    for r, name in enumerate(("first@2", f"{HOSTILE}@2")):
        scores = [[float(row[f"score_{k} {name}"]) for k in range(10)] for row in rows]
        assert np.array_equal(scores, now.scores[r])
        safe = ["'=1+1", *CLASSES[1:6], "'-6", "&amp;", "'@8", "9"]
        assert [row[f"guess {name}"] for row in rows] == [safe[k] for k in now.guess[r]]
    page.go_to_epoch(0)
    rows = downloaded(page, tmp_path, "csv")
    scores = [float(row["score_3 first@1 (rounded)"]) for row in rows]
    assert scores == pytest.approx(files[0].scores[0][:, 3], abs=0.00501)


def test_image_is_opened_stepped_and_marked_by_keys(page, two, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    page.open(two)
    page.js("localStorage.clear()")
    page.open(two)
    ids = page.ids
    page.js("const e = document.querySelector('#list .open'); e.focus()")
    press = lambda key: ActionChains(page.browser).send_keys(key).perform()  # noqa: E731
    press(Keys.ENTER)
    assert page.text("#image-title").startswith(f"image {ids[0]}: truth ")
    press(Keys.ARROW_LEFT)  # there is none before the first, and the keys go on
    press(Keys.ARROW_RIGHT)
    press(Keys.TAB)
    page.js("document.getElementById('before').focus()")
    press(Keys.ENTER)
    press(Keys.ARROW_RIGHT)
    limit = "history.replaceState = () => { delete history.replaceState; throw new DOMException() }"
    page.js(limit)  # as Firefox and Safari do while an arrow key is held
    press(Keys.ARROW_RIGHT)
    assert page.text("#image-title").startswith(f"image {ids[2]}: truth ")
    sheet = page.all("#detail .picture", "parseFloat(getComputedStyle(e).backgroundSize)")
    widths = page.all("#detail .picture", "e.getBoundingClientRect().width")
    assert widths == [280] and sheet[0] < 3000  # in a large one, WebKit shows another image
    (said,) = page.all("#place[role=status]")  # the focus has not moved, so a screen reader says this
    assert said.startswith("3 of ") and f" image {ids[2]}, truth " in said
    press(Keys.ARROW_LEFT)
    press("l")
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("l").key_up(Keys.CONTROL).perform()
    assert page.text("#image-title").startswith(f"image {ids[1]}: truth ")
    press(Keys.ESCAPE)
    page.wait("return !document.getElementById('image').open")
    assert page.js("return document.activeElement.dataset.key") == f"image-{ids[1]}"
    assert [row["id"] for row in downloaded(page, tmp_path, "marks")] == [str(ids[1])]
    page.js("const e = document.querySelector('#groups .open'); e.focus(); e.click()")
    press(Keys.ESCAPE)
    page.wait("return !document.getElementById('image').open")
    assert page.js("return document.activeElement.closest('#groups') !== null")  # back where it was opened
    page.open(two)
    assert page.text("#marks").startswith("1 doubtful")
    page.address("show=all&image=3")
    press("l")
    page.js("window.row = document.querySelector('#list tr')")
    press("l")  # takes the mark away; the list does not ask for it, and is not made again
    assert page.js("return window.row.isConnected")
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    page.open(two, "#image=3")
    press("l")
    page.browser.switch_to.window(first)  # where the page shows the marks of both tabs, and keeps them
    page.wait("return document.querySelector('#marks').textContent.startsWith('2 doubtful')")
    press("l")
    page.browser.switch_to.window(page.browser.window_handles[1])
    page.wait("return document.querySelector('#marks').textContent.startsWith('1 doubtful')")
    page.browser.close()
    page.browser.switch_to.window(first)
    for query, count in (('[["doubtful","=","1"]]', 1), ('[["doubtful","=","0"]]', 499)):
        page.address(f"show=all&image=3&query={query}")
        assert page.shown == count
        press("l")
        assert page.shown == count + (1 if count == 1 else -1)
        press("l")
    page.address(f"show=all&image={ids[5]}&sort=doubtful&down=1")
    press("l")
    assert page.ids[:2] == sorted([ids[1], ids[5]])
    page.js("Storage.prototype.setItem = () => { throw new DOMException() }")  # it is full, or forbidden
    for index in ids[6:8]:
        page.address(f"show=all&image={index}")
        press("l")
    assert page.text("#marks").startswith("4 doubtful")


def test_data_map_and_learning_agree_with_the_files(page, two, files):
    page.open(two)
    assert page.all("#map", "getComputedStyle(e).touchAction") == ["none"]  # else a finger scrolls the page
    scores = np.stack([files[view].scores[0][np.arange(500), files[view].truth] for view in (0, 1)])
    mean, spread = scores.mean(0), scores.std(0)
    left, right, low, high = 0.05, 0.3, 0.2, 0.8
    page.js(
        """
        const [left, right, low, high] = arguments, map = document.getElementById("map");
        const { width, height } = document.getElementById("area").viewBox.baseVal;
        const at = (type, spread, mean) => {
          const point = new DOMPoint(2 * spread * width, (1 - mean) * height);
          const { x, y } = point.matrixTransform(document.getElementById("area").getScreenCTM());
          map.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, pointerId: 1 }));
        };
        map.setPointerCapture = () => {};
        at("pointerdown", left, low); at("pointermove", right, high); at("pointerup", right, high);""",
        left,
        right,
        low,
        high,
    )
    inside = (spread >= left) & (spread <= right) & (mean >= low) & (mean <= high)
    assert page.shown == inside.sum() > 0
    wrong = [files[view].wrong[0] for view in (0, 1)]
    expected = [~wrong[0] & ~wrong[1], wrong[0] & ~wrong[1], ~wrong[0] & wrong[1], wrong[0] & wrong[1]]
    for i, mask in enumerate(expected):
        page.js("document.querySelector(`[data-run='0'][data-learned='${arguments[0]}']`).click()", i)
        assert page.shown == mask.sum()
    page.js("document.querySelector('#learned button').scrollIntoView()")
    first, second = page.all("#learned tbody tr:first-child td", "e.getBoundingClientRect().width")
    assert abs(first - second) < 1  # the bars of both runs have one scale
    page.click("by-margin")
    (top,) = page.all("#filters", "e.getBoundingClientRect().top")
    assert 0 <= top <= page.js("return innerHeight")  # what is left of the list is in view


def test_arrow_keys_move_in_a_matrix_with_one_tab_stop(page, two, files):
    from selenium.webdriver import ActionChains, Keys

    page.open(two)
    page.click("matrix-0")
    assert page.js("return document.querySelectorAll('.matrix [tabindex=\"0\"]').length") == 1
    sizes = {*page.all(".matrix .hint", "getComputedStyle(e).fontSize")}
    assert sizes < {*page.all(".matrix button", "getComputedStyle(e).fontSize")}  # right guesses stay back
    truths = {
        g: sorted({*files[1].truth[files[1].guess[0] == g]}) for g in range(10)
    }  # the rows of a column
    g, (above, below, *_) = max(truths.items(), key=lambda item: len(item[1]))
    page.js(
        "document.querySelector(`[data-key='cell-0,${arguments[0]},${arguments[1]}']`).focus()",
        int(above),
        g,
    )
    ActionChains(page.browser).send_keys(Keys.ARROW_DOWN).perform()
    key = page.js("return document.activeElement.dataset.key")
    assert key == f"cell-0,{below},{g}"
    assert page.js("return document.querySelectorAll('.matrix [tabindex=\"0\"]').length") == 1
    ActionChains(page.browser).send_keys(Keys.ENTER).perform()
    assert page.js("return document.activeElement.dataset.key") == key  # the focus stays in the new matrix
    back = "return document.activeElement.dispatchEvent(new KeyboardEvent('keydown', arguments[0]))"
    arrow = {"key": "ArrowUp", "bubbles": True, "cancelable": True}
    assert page.js(back, arrow | {"altKey": True}) and not page.js(back, arrow)  # Alt+arrow is the browser's
    controls, named = (
        "button, select, input, [role=img]",
        "[e.ariaLabel, e.title, e.textContent, e.closest('label')]",
    )
    assert all(any(names) for names in page.all(controls, named))
    # Safari gives the focus to what scrolls only if it has something to press, or a place among the stops.
    assert all(page.all(".scroll", "e.tabIndex === 0 || e.querySelector('button') !== null"))


def test_arrow_keys_move_among_the_pictures_of_a_group(page, two):
    from selenium.webdriver import ActionChains, Keys

    def stops(selector: str) -> int:
        return page.js(f"return document.querySelectorAll(`{selector} button[tabindex='0']`).length")

    page.open(two, "#show=all&gallery=1")
    assert stops("#list") == stops("#suspects") == 1
    groups = page.all("#groups .pictures", "e.querySelectorAll('button').length")
    assert stops("#groups") == sum(count > 0 for count in groups) < sum(groups)
    count = max(groups)
    page.js("document.querySelectorAll('#groups .pictures')[arguments[0]].querySelector('button').focus()",
            groups.index(count))  # fmt: skip
    place = "const group = document.activeElement.closest('.pictures'); "
    place += "return [...group.querySelectorAll('button')].indexOf(document.activeElement)"
    # The first run's pictures go from right to left.
    ahead = Keys.ARROW_LEFT if groups.index(count) % 2 == 0 else Keys.ARROW_RIGHT
    back = Keys.ARROW_RIGHT if ahead == Keys.ARROW_LEFT else Keys.ARROW_LEFT
    press = lambda key: ActionChains(page.browser).send_keys(key).perform()  # noqa: E731
    press(ahead)
    press(ahead)
    assert page.js(place) == 2
    press(back)
    assert page.js(place) == 1
    assert stops("#groups") == sum(count > 0 for count in groups)
    press(Keys.TAB)
    assert page.js("return document.activeElement.closest('.pictures')?.contains(arguments[0])") is not True
    assert page.js(place.replace("return", "if (!group) return -1; return")) in (
        0,
        -1,
    )  # another group, or none


def test_copy_saved_after_use_works(page, two, files, tmp_path):
    now = files[1]
    page.open(two)
    page.click("chip-all")
    page.click("gallery")
    page.choose("group", "verdict")
    page.click("matrix-1")
    page.click("add")
    page.choose("query-0-2", 40)
    page.js("document.querySelector('#list .open').click()")
    page.js(
        "const e = document.getElementById('image'); e.onkeydown(new KeyboardEvent('keydown', { key: 'l' }))"
    )
    page.go_to_epoch(0)
    dialog = "return document.getElementById('image').open"
    assert page.js(dialog)
    saved = tmp_path / "copy.html"
    saved.write_text("<!doctype html>" + page.js("return document.documentElement.outerHTML"))
    page.js("localStorage.clear()")
    page.open(saved)
    assert not page.js(dialog) and page.js("return document.getElementById('at').value") == "2"
    assert page.chips() == now.chips() and page.shown == now.chips()[0]
    assert page.all(".sheet0", "getComputedStyle(e).backgroundImage")[0].startswith('url("blob:')
    assert page.js("return document.getElementById('query').hidden") and page.text("#marks") == ""
    page.go_to_epoch(0)
    page.click("chip-fixed")
    assert page.shown == files[0].chips()[2]
    page.js("document.querySelector('#list .open').click()")
    assert page.js(dialog)
    page.click("close")
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_long_names_stay_within_the_first_screen(page, two, tmp_path):
    page.open(two)  # a setting has 780 characters
    wide = "return [...document.querySelectorAll('.top .scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert page.js(wide) == []
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    names = ["run_" + "_with_a_long_name" * 4 + end for end in "ab"]
    for seed, name in enumerate(names):
        make_csv(tmp_path / f"{name}.csv", 300, 10, seed)
    result = run("compare.py", *(f"{name}.csv" for name in names), "--no_images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page.open(tmp_path / "compare.html")
    assert page.js(wide) == []
    for width in (1280, 390):
        resize(page, width)
        assert page.js("return document.documentElement.scrollWidth") <= width
    resize(page, 1280)
    for pair in (
        names,
        [f"net_lr_0.0{n}_of_many_words" for n in "12"],
        [f"warmup_momentum_{n}" for n in "ab"],
    ):
        for seed, name in enumerate(pair):
            make_csv(tmp_path / f"{name}.csv", 300, 10, seed)
        result = run("compare.py", *(f"{name}.csv" for name in pair), "--no_images", cwd=tmp_path)
        page.open(tmp_path / "compare.html")
        # Each place shows what tells the two runs apart, and nothing of it is cut off.
        for place in (".top figure:last-child .label", ".top thead bdi", "#list th bdi", "#matrices bdi"):
            first, second, *_ = page.all(place, "e.textContent.split(' ')[0]")
            assert first != second and max(len(first), len(second)) < 16, place
        cut = "e.scrollWidth > e.clientWidth + 1"
        assert not any(page.all("#list th, .top thead th, #matrices button, #runs .cut > :last-child", cut))
        resize(page, 760, "print")
        assert not any(page.all("#groups .heads bdi", cut))
        resize(page, 1280)


def test_pages_without_truth_or_scores_leave_out_what_needs_them(page, tmp_path):
    rows = [("a.png", 0, "", 0.7, 0.3), ("b.png", 1, "", 0.2, 0.8), ("c.png", 0, "", 0.6, 0.4)]
    other = [rows[0], rows[1], ("c.png", 1, "", 0.1, 0.9)]
    for name, table in (("one", rows), ("two", other)):
        lines = ["id,guess,truth,score_0,score_1", *(",".join(map(str, row)) for row in table)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    visible = (
        "h2",
        "e.offsetParent && getComputedStyle(e.closest('section')).display !== 'none' && e.textContent",
    )
    assert run("compare.py", "one.csv", "two.csv", cwd=tmp_path).returncode == 0
    page.open(tmp_path / "compare.html")
    assert page.all("#chips button") == ["1 different guesses", "3 all"] and page.shown == 1
    assert page.all("#list [data-id]", "e.dataset.id") == ["c.png"]
    assert [title for title in page.all(*visible) if title] == ["Predictions"]
    assert page.all("#list th button") == ["id", "one", "two", "verdict", "scores ↑"]
    page.click("chip-all")
    page.js("document.querySelector('[data-id=\"b.png\"] .open').click()")
    assert page.text("#image-title") == "image b.png" and "0.2" in page.text("#detail table")
    assert page.all(".truth, .bad, .ok") == []
    rows = downloaded(page, tmp_path, "csv")
    assert [row["id"] for row in rows] == ["a.png", "b.png", "c.png"] or len(rows) == 3

    (tmp_path / "bare.csv").write_text("id,guess,truth\n0,1,1\n1,0,1\n2,2,2\n3,2,1\n")
    assert run("compare.py", "bare.csv", "--no_images", cwd=tmp_path).returncode == 0
    page.open(tmp_path / "compare.html")
    assert page.ids == [1, 3] and page.all("#list th button") == ["id ↑", "truth", "bare", "verdict"]
    titles = ["Predictions", "Confusion", "Wrong guesses, grouped by guess", "Per class"]
    assert [title for title in page.all(*visible) if title] == titles
    assert page.all("#sort option", "e.value") == ["id", "truth", "verdict", "doubtful", "guess0"]
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_marks_are_of_the_images_of_a_page_and_not_of_others_with_its_title(page, tmp_path):
    for folder, truths in (("mnist", "011"), ("fashion", "101")):
        (tmp_path / folder).mkdir()
        rows = [f"{n},{truth},0" for n, truth in enumerate(truths)]
        (tmp_path / folder / "a.csv").write_text("\n".join(["id,truth,guess", *rows]))
        assert run("compare.py", "a.csv", "--no_images", cwd=tmp_path / folder).returncode == 0
    page.open(tmp_path / "mnist/compare.html", "#image=1").click("doubt")
    assert page.text("#marks") == "1 doubtful, CSV"
    assert page.open(tmp_path / "fashion/compare.html").text("#marks") == ""
    assert page.open(tmp_path / "mnist/compare.html").text("#marks") == "1 doubtful, CSV"


def test_a_browser_that_is_too_old_is_told(page, two):
    cdp, old = page.browser.execute_cdp_cmd, {"source": "delete Map.groupBy"}
    added = cdp("Page.addScriptToEvaluateOnNewDocument", old)
    try:
        page.browser.get(two.as_uri())
        assert page.all(".late", "getComputedStyle(e).visibility") == ["hidden"]
        page.wait("return getComputedStyle(document.querySelector('.late')).visibility === 'visible'")
        assert "the browser is too old: the list needs Chrome 117" in page.text("#list")
        page.browser.get_log("browser")  # of the error, which is not one of the next page
    finally:
        cdp("Page.removeScriptToEvaluateOnNewDocument", added)
    assert "too old" not in page.open(two).text("body")


def test_page_of_one_image_says_image(page, tmp_path):
    (tmp_path / "one.csv").write_text("id,guess,truth,score_0,score_1\n0,1,0,2.1444316143341123e-16,1\n")
    assert run("compare.py", "one.csv", "--no_images", cwd=tmp_path).returncode == 0
    page.open(tmp_path / "compare.html", "#group=truth")
    text = page.js("return document.body.textContent")
    assert "one gets 1 of 1 image wrong" in text and "truth: 0, 1 image" in text
    assert not re.search(r"\b1 images\b", text)
    page.address("image=0")  # the exponent of a score is seen
    cell = page.all("#detail td", "[e.textContent, e.scrollWidth - e.clientWidth]")[1]
    assert cell == ["2.1444316143341123e-16", 0]


def test_page_without_javascript_print_phone_and_saved_copy(page, two, files, tmp_path):
    now, cdp = files[1], page.browser.execute_cdp_cmd
    cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    page.browser.get(two.as_uri())
    cdp("Emulation.setScriptExecutionDisabled", {"value": False})  # for the questions below
    visible = page.js("return document.body.innerText")
    assert f"{now.wrong[0].sum()} against {now.wrong[1].sum()} wrong" in visible
    assert "Predictions" not in visible and "Wrong guesses, grouped by guess" in visible
    assert page.all("noscript table", "e.parentElement.className") == ["scroll"] * 4
    isolated = (
        "e.textContent.split('×').length - 1 === e.querySelectorAll('bdi').length"  # right-to-left names
    )
    assert all(page.all("noscript .left td", isolated))
    assert page.js("return document.querySelectorAll('section[data-view]:not([hidden]) svg').length") == 4

    page.open(two, "#show=all&epoch=0&image=3")
    saved = tmp_path / "saved copy #1 %20é.html"  # as a browser saves it: the document as it stands
    saved.write_text("<!doctype html>" + page.js("return document.documentElement.outerHTML"))
    page.open(saved)
    assert page.chips() == now.chips() and page.shown == now.chips()[0]
    assert not page.js("return document.getElementById('image').open")

    cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    page.open(two)
    background = "return getComputedStyle(document.body).backgroundColor"
    assert page.js(background) == "rgb(20, 23, 26)"
    cdp(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    assert page.js(background) == "rgb(255, 255, 255)"
    pdf = base64.b64decode(cdp("Page.printToPDF", {})["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 4

    cdp("Emulation.setEmulatedMedia", {"features": [{"name": "forced-colors", "value": "active"}]})
    page.open(two)  # as Windows shows it with high contrast: what is pressed, and the bars, are still seen
    colour = "getComputedStyle(e).backgroundColor"
    (pressed,), others = (
        page.all(f"#chips [aria-pressed={is_pressed}]", colour) for is_pressed in ("true", "false")
    )
    assert pressed not in others and set(page.all("#groups .bar i", colour)).isdisjoint(others)

    cdp("Emulation.setEmulatedMedia", {})
    cdp(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    page.open(two)
    assert page.js("return document.documentElement.scrollWidth") <= 390
    boxes = page.all("#list tr:first-child .c-guess", "e.getBoundingClientRect().right")
    assert len(boxes) == 2 and max(boxes) <= 390


def make_csv(path: Path, count: int, num_classes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(9).integers(0, num_classes, count)
    scores = rng.dirichlet(np.full(num_classes, 0.1), count).astype(np.float32) + np.float32(1e-9)
    guess = scores.argmax(1)
    names = [
        f"{k}" if num_classes < 100 else f"class {k} with a{' long' * 14} name" for k in range(num_classes)
    ]
    head = "id,guess,truth," + ",".join(f"score_{name}" for name in names)
    lines = [
        f"{i},{g},{t}," + ",".join(f"{s:.9g}" for s in row)
        for i, (g, t, row) in enumerate(zip(guess, truth, scores))
    ]
    path.write_text("\n".join([head, *lines]) + "\n")
    return guess != truth


def test_one_run_three_runs_and_a_hundred_classes(page, tmp_path):
    wrong = [make_csv(tmp_path / f"{name}.csv", 400, 100, seed) for seed, name in enumerate("abc")]
    for names in ("a", "ab", "abc"):
        result = run("compare.py", *(f"{name}.csv" for name in names), "--no_images", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        page.open(tmp_path / "compare.html")
        masks = np.stack(wrong[: len(names)])
        assert page.chips()[0] == page.shown == masks.any(0).sum() and page.chips()[-1] == 400
        assert not page.js("return document.querySelector('.picture')")
        pdf = base64.b64decode(page.browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 4
        assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.chips()[1] == (masks.any(0) & ~masks.all(0)).sum()
    tables = page.all(
        "#classes section .pair table", "[...e.querySelectorAll('td')].map(c => +c.textContent)"
    )
    assert tables[1] == [int((masks[a] & masks[b]).sum()) for a in range(3) for b in range(3)]
    page.js("document.getElementById('confusion').scrollTo(500, 500)")
    assert page.all("#confusion", "[e.scrollLeft, e.scrollTop]") == [[500, 500]]
    corner, head, row = page.all(
        ".matrix tr:first-child th:nth-child(-n + 2), .matrix tbody tr:first-child th",
        "[e.getBoundingClientRect().x, e.getBoundingClientRect().y]",
    )
    place = page.all("#confusion", "[e.getBoundingClientRect().x, e.getBoundingClientRect().y]")[0]
    assert corner == place and head[1] == place[1] and row[0] == place[0]  # the names stay in sight


def check_speed(page: Page, limit: int, column: str) -> None:
    """Time what a reader does, in milliseconds. On a busy machine it may take some tries to see it."""
    for key, there, back in (
        ("chip", "by('chip-all').click()", "by('chip-wrong').click()"),
        ("sort", f"choose('sort', '{column}')", "choose('sort', 'change')"),
        ("select", "choose('truth', 3)", "choose('truth', '')"),
        ("gallery", "by('gallery').click()", "by('gallery').click()"),
        ("page", "by('next').click()", "by('previous').click()"),
    ):
        milliseconds = page.js(f"""
            const by = k => document.getElementById(k) ?? document.querySelector(`[data-key='${{k}}']`);
            const choose = (k, value) => {{ by(k).value = value; by(k).onchange({{ target: by(k) }}); }};
            let best = Infinity;
            for (let i = 0; i < 20 && best >= {limit}; i++) {{
              const start = performance.now();
              {there};
              document.body.offsetHeight;  // with the layout
              best = Math.min(best, performance.now() - start);
              {back};
              document.body.offsetHeight;
            }}
            return best;""")
        assert milliseconds < limit, key


def test_ten_thousand_rows_answer_within_a_tenth_of_a_second(page, tmp_path):
    for seed, name in enumerate("ab"):
        make_csv(tmp_path / f"{name}.csv", 10_000, 10, seed)
    result = run("compare.py", "a.csv", "b.csv", "--no_images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page.open(tmp_path / "compare.html")
    check_speed(page, 100, "class3_0")


def test_fifty_thousand_rows_of_a_thousand_classes_answer_in_a_third_of_a_second(page, tmp_path):
    for seed, name in enumerate("ab"):
        write_random_best(tmp_path / f"{name}.csv", 50_000, 1000, seed)
    result = run("compare.py", "a.csv", "b.csv", "--no_images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "compare.html").stat().st_size < 20e6
    page.open(tmp_path / "compare.html")
    check_speed(page, 300, "mistake")


@pytest.fixture(scope="session")
def many(once) -> Path:
    """A page of 2,000 images of 300 classes: a run of two epochs, a run of one (see `models`)."""

    def fill(folder: Path) -> None:
        for name, made in models().items():
            made.write_run(folder / name, [f"kind {k:03d}" for k in range(300)])
        result = run("compare.py", *models(), "--no_images", cwd=folder)
        assert result.returncode == 0, result.stderr

    return once("many", fill) / "compare.html"


def test_hundreds_of_classes_are_shown_by_the_best_and_most_frequent(page, many, tmp_path):
    a, b = models().values()
    assert many.stat().st_size < 1.5e6
    page.open(many)
    for view, epoch in ((1, 1), (0, 0)):
        page.go_to_epoch(view)
        wrong = a.wrong[epoch] | b.wrong[0]
        assert page.chips()[0] == page.shown == wrong.sum() and page.chips()[-1] == 2000
        counts = a.pairs(epoch), b.pairs(0)
        totals = {pair: sum(c.get(pair, 0) for c in counts) for pair in {*counts[0], *counts[1]}}
        keys = page.all(".pairs button", "[e.dataset.key, e.textContent]")
        cells = {tuple(map(int, key.removeprefix("cell-").split(","))): int(n) for key, n in keys}
        assert cells == {(r, t, g): counts[r].get((t, g), 0) for r, t, g in cells} and len(cells) == 40
        found = sorted((totals[t, g] for r, t, g in cells if r == 0), reverse=True)
        assert found == sorted(totals.values(), reverse=True)[:20]
        assert page.text("#minus") == f"The 20 most frequent of {len(totals):,} confused pairs."
        groups = page.all("#groups .pictures b", "Number(e.textContent)")
        expected = np.bincount(a.guess[epoch][a.wrong[epoch]], minlength=300)
        expected += np.bincount(b.guess[0][b.wrong[0]], minlength=300)
        assert np.reshape(groups, (-1, 2)).sum(1).tolist() == sorted(expected, reverse=True)[:20]
        assert f"of {np.count_nonzero(expected)}." in page.text("#groups > p.hint")
    r, t, g = next(cell for cell, n in cells.items() if n)
    page.click(f"cell-{r},{t},{g}")
    one = (a, b)[r]
    assert page.shown == ((one.truth == t) & (one.guess[0] == g)).sum()
    page.click("clear")
    assert len(page.all("#truth option")) == len(page.all("#guess option")) == 301
    page.choose("truth", 299)
    assert page.shown == (a.truth == 299).sum()
    assert not [key for key in page.all("#sort option", "e.value") if key.startswith("class")]
    assert (
        page.js("return document.querySelectorAll('#classes section:not([hidden]) tbody tr').length") == 50
    )
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_scores_of_hundreds_of_classes_are_those_of_the_best_and_the_truth(page, many, tmp_path):
    a, b = models().values()
    page.open(many, "#show=all&sort=id&down=")
    names = page.all("#list tr[data-id] .bars", "e.getAttribute('aria-label')")
    for n, words in enumerate(names):
        best = np.maximum(a.scores[1][n], b.scores[0][n])
        expected = {*np.argsort(-best, kind="stable")[:10].tolist(), int(a.truth[n])}
        shown = dict(re.findall(r"kind (\d+)\u2069: (\d+ %, \d+ %)", words))
        assert {int(k) for k in shown} == expected
        assert shown[f"{a.truth[n]:03d}"] == ", ".join(
            f"{100 * x.scores[e][n][a.truth[n]]:.0f} %" for x, e in ((a, 1), (b, 0))
        )
    n = int(np.flatnonzero(a.truth_score(1) < np.sort(a.scores[1], axis=1)[:, -10])[0])  # not among the ten
    page.address(f"show=all&image={n}")
    rows = page.all("#detail tbody tr", "[...e.children].map(c => c.textContent)")
    table = {row[0]: row[1:] for row in rows}
    assert float(table[f"kind {a.truth[n]:03d} (truth)"][0]) == pytest.approx(a.truth_score(1)[n])
    assert "–" in np.ravel(list(table.values())) and len(rows) <= 21
    page.address("show=all&sort=truth0&down=")
    assert page.ids == a.truth_score(1).argsort(kind="stable")[:25].tolist()
    page.address("show=all&sort=id&down=")
    rows = downloaded(page, tmp_path, "csv")
    for name, made, epoch in (("a@2", a, 1), ("b@1", b, 0)):
        scores = [float(row[f"truth_score {name}"]) for row in rows]
        assert scores == pytest.approx(made.truth_score(epoch))
        for rank in (1, 2, 10):
            guesses = [int(row[f"best_{rank} {name}"].removeprefix("kind ")) for row in rows]
            assert guesses == np.argsort(-made.scores[epoch], axis=1, kind="stable")[:, rank - 1].tolist()
            scores = [float(row[f"best_{rank}_score {name}"]) for row in rows]
            assert scores == pytest.approx(np.sort(made.scores[epoch], axis=1)[:, -rank])
    page.go_to_epoch(0)
    scores = [float(row["truth_score a@1 (rounded)"]) for row in downloaded(page, tmp_path, "csv")]
    assert scores == pytest.approx(a.truth_score(0), abs=0.00501)


def test_hundreds_of_classes_fit_paper_phones_and_files_without_truth_or_scores(page, many, tmp_path):
    page.open(many)
    pdf = base64.b64decode(page.browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 4
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.open(many)
    assert page.js("return document.documentElement.scrollWidth") <= 390
    lines = models()["a"].write_csv(tmp_path / "best.csv").read_text().splitlines()
    (tmp_path / "blind.csv").write_text(
        "\n".join(re.sub(r"^(\d+,\d+),\d+,", r"\1,,", line) for line in lines)
    )
    (tmp_path / "bare.csv").write_text("\n".join(",".join(line.split(",")[:3]) for line in lines))
    (tmp_path / "three.csv").write_text("\n".join(",".join(line.split(",")[:10]) for line in lines))
    result = run("compare.py", "three.csv", "--no_images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page.open(tmp_path / "compare.html", "#show=all")
    rows = downloaded(page, tmp_path / "three", "csv")
    assert all(row["truth_score three"] and row["best_3 three"] and not row["best_4 three"] for row in rows)
    for name, marks in (("blind", 0), ("bare", models()["a"].wrong[0].sum())):
        result = run("compare.py", f"{name}.csv", "--no_images", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        page.open(tmp_path / "compare.html")
        assert page.shown == (marks or 2000) and len(page.ids) == 25
        page.js("document.querySelector('#list .open').click()")
        assert page.js("return document.getElementById('image').open")
        downloaded(page, tmp_path / name, "csv")
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def contrast(a: str, b: str) -> float:
    def luminance(color: str) -> float:
        color = color if len(color) == 7 else "#" + "".join(2 * c for c in color[1:])
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_of_both_themes_can_be_read():
    css = (Path(__file__).parent.parent / "page/page.css").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(themes) == 2
    for theme in themes:
        for name in ("text", "mute", "ok", "bad", *(f"r{i}" for i in range(6))):
            for back in ("back", "card"):
                assert contrast(theme[name], theme[back]) >= 4.5, (name, back)
        assert contrast(theme["axis"], theme["back"]) >= 3


def compare(main, folder: Path, *arguments, out: str = "compare.html") -> Path:
    result = main("compare.py", *arguments, "--no_images", "--out", out, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / out


def resize(page: Page, width: int, media: str = "", height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    two_frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
    page.browser.execute_async_script(two_frames)  # until the layout has followed


@pytest.fixture(scope="module")
def poor(tmp_path_factory) -> Path:
    """Three files of guesses that are hardly better than chance."""
    folder = tmp_path_factory.mktemp("poor")
    for seed, name in enumerate("abc"):
        make_csv(folder / f"{name}.csv", 300, 10, seed)
    return folder


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_a_group_of_wrong_guesses_is_a_row_of_columns_that_do_not_overlap(page, poor, main, runs):
    path = compare(main, poor, *(f"{name}.csv" for name in "abc"[:runs]))
    box = "(({ left, right, top, bottom }) => [left, right, top, bottom])(e.getBoundingClientRect())"
    for width in (1400, 800):
        resize(page, width)
        page.open(path)
        name, middle, *pictures = page.all("#groups .wrongs:nth-child(2) > *", box)
        columns = [name, pictures[0], middle, pictures[1]] if runs == 2 else [name, middle, pictures[0]]
        assert all(a[1] <= b[0] for a, b in zip(columns, columns[1:]))
        assert all(a[3] <= b[2] for a, b in zip(pictures, pictures[1:])) or runs == 2
        parts = page.all("#groups .wrongs:nth-child(2) .line > *", box)
        assert all(middle[0] - 1 <= left and right <= middle[1] + 1 for left, right, *_ in parts)
        (row,) = page.all("#groups .wrongs:nth-child(2)", box)
        assert row[3] - max(column[3] for column in (name, middle, *pictures)) < 8  # no empty lines below


def test_charts_labels_and_scores_can_be_read_on_a_phone_and_of_a_poor_run(page, poor, main):
    path = compare(main, poor, "a.csv", "b.csv")
    resize(page, 1400)
    page.open(path)
    hidden = """
      return [...document.querySelectorAll("section:not([hidden]) figure svg")].slice(0, 1).flatMap(svg =>
        [...svg.querySelectorAll(".label")].map(label => label.getBBox()).flatMap(box =>
          [...svg.querySelectorAll("polyline")].flatMap(line => [...line.points].filter(({ x, y }) =>
            x > box.x && x < box.x + box.width && y > box.y && y < box.y + box.height))))"""
    assert page.text("section:not([hidden]) figcaption").startswith("Review curve")
    assert page.js(hidden) == []
    chosen = """
      const [e] = [document.getElementById("sort")], pen = document.createElement("canvas").getContext("2d");
      pen.font = getComputedStyle(e).font;
      return e.clientWidth - pen.measureText(e.selectedOptions[0].textContent).width"""
    assert page.js(chosen) > 0
    for width in (1280, 390):  # a matrix of MNIST's counts needs no scroll bar
        resize(page, width)
        page.open(path, "#matrix=0")
        page.js("[...document.querySelectorAll('.matrix .hint')].map((e, i) => "
                "{ e.textContent = i < 4 ? '1,032' : '974' })")  # fmt: skip
        assert page.all("#confusion", "e.scrollWidth - e.clientWidth") == [0]
    resize(page, 390)
    page.open(path, "#image=3")
    assert page.js(
        "const e = document.querySelector('#groups .heads .name'); return e.scrollWidth <= e.clientWidth"
    )
    assert "right" not in page.all("#groups .heads > *", "getComputedStyle(e).textAlign")
    right = page.js("return document.getElementById('image').getBoundingClientRect().right")
    assert all(edge <= right for edge in page.all("#detail td", "e.getBoundingClientRect().right"))


def write_certain(path: Path, guesses: list[list[int]], **config) -> None:
    """A run directory with an epoch for each list of guesses, of images whose truth is 0."""
    (path / "predictions").mkdir(parents=True)
    for epoch, guess in enumerate(guesses, 1):
        rows = [f"{n},{g},0,{0.99 - 0.98 * g:.2f},{0.01 + 0.98 * g:.2f}" for n, g in enumerate(guess)]
        text = "\n".join(["id,guess,truth,score_0,score_1", *rows])
        (path / f"predictions/epoch-{epoch:03d}.csv").write_text(text + "\n")
    (path / "config.json").write_text(json.dumps(config))
    (path / "summary.json").write_text("{}")


def test_labels_of_runs_that_are_all_wrong_stay_below_the_title(tmp_path, main):
    for name in "abcde":
        write_certain(tmp_path / name, [[1] * 8, [1] * 4 + [0] * 4])
    page = compare(main, tmp_path, *(f"{name}@1" for name in "abcde")).read_text()
    chart = page[page.index("Wrong by epoch") : page.index("Review curve")]
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*class="label', chart))
    assert len(heights) == 5 and heights[0] >= 12 and min(np.diff(heights)) >= 12
    write_certain(tmp_path / "right", [[0] * 8, [0] * 8])
    assert "right@2 0" in compare(main, tmp_path, "right").read_text()


def test_charts_stay_beside_the_figures_of_many_runs(page, tmp_path, main):
    for name in "abcdefgh":
        write_certain(tmp_path / name, [[1] * 2000, [1] * 1000 + [0] * 1000])
    path = compare(main, tmp_path, *"abcdefgh")
    for width in (1280, 720):
        resize(page, width)
        page.open(path)
        (table,) = page.all("section:not([hidden]) .top .scroll", "e.getBoundingClientRect().right")
        charts = page.all("section:not([hidden]) figure", "e.getBoundingClientRect().left")
        assert len(charts) == 3 and (width < 1280 or min(charts) > table)
        cut = page.all("section:not([hidden]) .top .scroll", "e.scrollWidth > e.clientWidth")
        assert cut == [False]
    resize(page, 1280)
    page.click("image-3")
    assert page.all("#image", "e.scrollHeight - e.clientHeight") == [0]  # all curves and scores at once
    page.open(compare(main, tmp_path, *"abcde"))
    heads = page.all("#list thead bdi, section:not([hidden]) .top thead bdi", "e.innerHTML")
    assert heads == 2 * [f"{name}<wbr>@2" for name in "abcde"]  # a narrow title breaks before the epoch
    page.js("document.querySelector('#list').style.width = '740px'")  # as beside pictures
    assert page.all("#list", "e.scrollWidth - e.clientWidth") == [0]
    resize(page, 760, "print")
    page.js("for (const e of document.querySelectorAll('#learned button')) e.textContent = '10,000'")
    outside = "e.getBoundingClientRect().right > e.closest('td').getBoundingClientRect().right"
    assert page.all("#learned button", outside) == [False] * 20  # on paper too, the numbers are whole


def test_list_of_large_pictures_with_long_names_does_not_scroll(page, tmp_path, main):
    names, photos = ["Golden Retriever", "Labrador Retriever"], tmp_path / "photos"
    places = 8 * [f"test/{names[0]}"] + [f"train/{name}" for name in names]
    for n, place in enumerate(places):
        (photos / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 160), (20 * n, 0, 0)).save(photos / place / f"IMG_2024_{n:04d}.png")
    for name in ("photo1", "photo2", "photo3"):
        config = {"dataset": str(photos), "classes": names, "image_size": 160}
        write_certain(tmp_path / name, [[1] * 8, [1] * 4 + [0] * 4], **config)
    for count in (1, 2, 3):
        assert main("compare.py", *(f"photo{n + 1}" for n in range(count)), cwd=tmp_path).returncode == 0
        page.open(tmp_path / "compare.html")
        for width in (1280, 1600):
            resize(page, width)
            assert page.all("#list", "e.scrollWidth - e.clientWidth") == [0], (count, width)


def test_two_epochs_of_a_run_have_one_past(page, tmp_path, main):
    write_certain(tmp_path / "one", [[1] * 8, [1] * 4 + [0] * 4])
    page.open(compare(main, tmp_path, "one@1", "one@2"), "#image=3")
    assert page.all("#learned th") == ["right", "one", *page.all("#learned tbody th")]
    assert page.all("#mapped option") == ["one"]
    assert len(page.all("#list tr[data-id]:first-child .spark polyline")) == 1
    assert len(page.all("#detail .curves")) == 1
    assert [title for title in page.all("#sort option") if title.startswith("right")] == ["right, one"]
    page.js("document.querySelector(\"[data-learned='3']\").click()")
    assert page.shown == 4
    write_certain(tmp_path / "elsewhere/one", [[1] * 8, [0] * 8, [0] * 8])
    page.open(compare(main, tmp_path, "one", "elsewhere/one"))
    assert page.all("#learned thead th") == ["right", "one@2", "one@3"]
    page.click("image-3")
    ends = [
        float(points.split()[-1].split(",")[0])
        for points in page.all(
            "#list tr[data-id]:first-child .spark polyline, #detail .curves polyline:first-of-type",
            "e.getAttribute('points')",
        )
    ]
    assert ends == [45, 87, 148, 288]  # epoch 2 is where it is in a run of three epochs
    sizes = page.all("#learned button, #matrices button", "e.getBoundingClientRect().height")
    assert min(sizes) >= 24  # for fingers: WCAG 2.2, 2.5.8
    text = "const r = document.createRange(); r.selectNodeContents(document.querySelector(arguments[0])); "
    middle = text + "const { top, bottom } = r.getBoundingClientRect(); return (top + bottom) / 2"
    label, count = (page.js(middle, f"#learned tbody {part}") for part in ("th", "button"))
    assert abs(label - count) < 2  # they stand in one line
    resize(page, 390)
    shown, truth = (page.js(middle, f"#list tr[data-id] {part}") for part in (".c-id .open", ".c-truth bdi"))
    assert abs(shown - truth) < 2 and min(page.all("#list .c-id .open", "e.offsetHeight")) >= 24
    resize(page, 1280)
    write_certain(tmp_path / "many", [[1] * 8] * 12)
    page.open(compare(main, tmp_path, "many"))
    assert not any(page.all("#learned th", "e.scrollWidth > e.clientWidth"))  # "since epoch 12" is whole


def test_the_data_map_names_its_zones_where_no_image_can_be(page, tmp_path, main):
    write_certain(tmp_path / "one", [[1] * 8, [0] * 8])
    path = compare(main, tmp_path, "one")
    for width in (1400, 390):
        resize(page, width)
        page.open(path)
        corners = page.js("""
          const { left, width, top, height } = document.getElementById("area").getBoundingClientRect();
          const boxes = [...document.querySelectorAll("#map .label")].map(e => e.getBoundingClientRect());
          const mean = y => 1 - (y - top) / height;
          return boxes.map(box => [(box.left - left) / width / 2, mean(box.top), mean(box.bottom)])""")
        assert len(corners) == 3
        for spread, *means in corners:
            assert all(spread**2 > mean * (1 - mean) for mean in means)
        assert min(page.all("#map text", "e.getBoundingClientRect().height")) >= 10


def test_the_page_names_no_folder_of_the_machine(tmp_path, main):
    for name, teacher in (("a", "t1"), ("b", "t2")):
        secret = f"/home/someone/{name}"
        config = {
            "dataset": str(tmp_path / "own"),
            "data_dir": secret,
            "run_dir": secret,
            "note": f"of {name}",
        }
        config |= {
            "teacher": f"{secret}/my models/{teacher}.pt",
            "list": [f"{secret}/1.png", "C:\\me\\2.png"],
        }
        config |= {"link": f"file://{secret}/x", "ratio": f"{name}/2", "site": f"https://example.org/{name}"}
        write_certain(tmp_path / name / "run", [[1, 0, 0], [0, 0, 1]], **config)
    page = compare(main, tmp_path, tmp_path / "a/run", tmp_path / "b/run").read_text()
    assert str(tmp_path) not in page and "someone" not in page and "C:\\\\me" not in page
    assert "folder own, 3 images" in page and "t1.pt" in page and "a/run@2" in page and "b/run@2" in page
    assert "https://example.org/a" in page and ">a/2<" in page
    text = (tmp_path / "b/run/config.json").read_text().replace(str(tmp_path), "/home/someone")
    (tmp_path / "b/run/config.json").write_text(text.replace("/own", "/other"))
    page = compare(main, tmp_path, "a/run", "b/run").read_text()
    assert "folder other" in page and "folder own" in page and "someone" not in page


WORDNET = ["n02085620", "n02085782", "n02085936", "n01440764", "n01443537", "background"]


@pytest.fixture
def dogs(tmp_path, main) -> Path:
    """Images of six classes. The runs disagree with the label of image 0, and with no other one."""
    rows = ["id,guess,truth," + ",".join(f"score_{name}" for name in WORDNET)]
    for n in range(30):
        score = 0.8 if n % 2 else 0.95
        scores = [score if k == n % 6 else (1 - score) / 5 for k in range(6)]
        rows.append(
            f"{n},{WORDNET[n % 6]},{WORDNET[n % 6 if n else 1]}," + ",".join(f"{s:.4f}" for s in scores)
        )
    (tmp_path / "dogs.csv").write_text("\n".join(rows) + "\n")
    return compare(main, tmp_path, "dogs.csv")


def test_only_negative_margins_are_suspected(page, dogs, main, tmp_path):
    page.open(dogs)
    assert page.all("#suspects [data-row]", "e.dataset.row") == ["0"]
    assert page.text("#suspects-title") == "Suspected label errors 1"
    page.js("localStorage.clear()")
    page.open(dogs, "#show=all")
    for image in (0, 7):  # the reader doubts two labels, the runs one of them
        page.address(f"show=all&image={image}")
        page.click("doubt")
    page.address("show=all")
    rows = downloaded(page, tmp_path / "marks", "marks")
    assert [(row["id"], row["suggested"]) for row in rows] == [("0", WORDNET[0]), ("7", "")]
    assert float(rows[0]["margin"]) < 0 < float(rows[1]["margin"])
    lines = dogs.with_name("dogs.csv").read_text().splitlines()
    (tmp_path / "clean.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    page.open(compare(main, tmp_path, "clean.csv"))
    assert page.text("#suspects").startswith("None") and page.text("#suspects-title").endswith(" 0")
    assert page.shown == 29  # nothing is wrong, so all images are shown


def test_a_query_understands_percent_and_says_what_it_does_not(page, dogs):
    page.open(dogs, "#show=all")
    page.click("add")
    page.choose("query-0-0", "score0")
    assert page.text("#filters").startswith("30 of 30") and "query: 0 of 1" in page.text("#filters")
    field = "[e.placeholder, e.ariaInvalid]"
    for typed, shown in {"0.9": 15, "0,9": 15, "90%": 15, " 90 % ": 15, ".96": 0, "1": 0}.items():
        page.choose("query-0-2", typed)
        assert page.shown == shown, typed
        assert page.all("#conditions input", field) == [["0 to 1", "false"]]
        assert "query ✕" in page.text("#filters")
    for typed in ("90", "abc", "0.9.1", "-0.1", "150%", "%", "Infinity"):
        page.choose("query-0-2", typed)
        assert page.shown == 30 and page.all("#conditions input", field) == [["0 to 1", "true"]], typed
        assert "query: 0 of 1 conditions" in page.text("#filters")
        assert "a number from 0 to 1, or a percentage" in page.text("#conditions")
    assert page.all("#conditions input", "getComputedStyle(e).outlineStyle") == ["solid"]
    page.click("add")
    page.choose("query-1-0", "id")
    page.choose("query-1-2", "20")
    page.choose("any", 1)
    assert page.shown == 10  # the other condition is not applied
    page.choose("query-1-2", "90%")
    assert page.shown == 30
    page.choose("query-1-2", "1,000")
    assert page.shown == 0
    page.choose("query-1-0", "margin")
    page.choose("query-1-1", "<")
    page.choose("query-1-2", "−0.5")
    assert page.shown == 1


def test_focus_stays_beside_what_the_keyboard_changed(page, dogs):
    page.open(dogs, "#show=all")
    page.click("add")

    def press(key: str, keys: str) -> None:
        page.browser.find_element("css selector", f"[data-key='{key}']").send_keys(keys)

    focused = "return document.activeElement.dataset.key ?? document.activeElement.id"
    press("query-0-2", "20\ue004")  # Tab
    page.wait("return document.querySelector('#shown').textContent.startsWith('10 ')")
    assert page.js(focused) == "remove-0"
    press("remove-0", "\ue007")  # Enter
    assert page.js(focused) == "add" and page.shown == 30
    press("cell-0,0,0", "\ue007")
    assert page.js(focused) == "cell-0,0,0"
    press("no-cell", "\ue007")
    assert page.js(focused) == "add" and page.shown == 30
    for width, height in ((1280, 720), (390, 800), (320, 256)):  # the last is a zoom of 400 %
        resize(page, width, height=height)
        page.js(
            "const e = document.querySelectorAll('#list .open')[5], box = e.getBoundingClientRect(); "
            "document.activeElement.blur(); scrollBy(0, box.top - 2); e.focus()"
        )  # as with Shift+Tab
        place = "const { left, top } = document.activeElement.getBoundingClientRect(); "
        assert page.js(
            place + "return document.elementFromPoint(left + 1, top + 1)?.closest('.open') != null"
        )


def test_short_names_tell_classes_apart(page, dogs, main, tmp_path):
    page.open(dogs)
    names = page.all("#list tr:first-child .bars text")
    assert len({*names}) == len(names) == 6 and "back" in names
    groups = [f"{kind} of {size} dogs" for kind in ("sleeping", "running") for size in ("small", "large")]
    long = [*groups, "sleeping", "cat", "cats", "dog"]
    rows = [f"{n},{n % 8},{n // 2 % 8}," + ",".join("0.125" for _ in long) for n in range(16)]
    (tmp_path / "long.csv").write_text(
        "\n".join(["id,guess,truth," + ",".join(f"score_{name}" for name in long), *rows]) + "\n"
    )
    page.open(compare(main, tmp_path, "long.csv"))
    names = page.all("#list tr:first-child .bars text")
    assert len({*names}) == len(names) == 8 and all(names)
    resize(page, 1280)
    page.click("matrix-0")
    spaces = page.all(".matrix .cut > *", "getComputedStyle(e).whiteSpace")
    assert {*spaces} == {"pre"}  # else a space where a name is cut is not seen
    directions = page.all(".matrix th[scope=col]:not(:first-child) bdi", "getComputedStyle(e).writingMode")
    boxes = page.all(".matrix th[scope=col]:not(:first-child)", "getComputedStyle(e).writingMode")
    assert {*directions} == {"vertical-rl"} and {*boxes} == {"horizontal-tb"}  # WebKit cannot turn cells
    # In the list, a long name is cut in its middle.
    ends = page.all("#list .cut > :last-child", "e.scrollWidth <= e.parentElement.clientWidth")
    assert ends and all(ends)
    resize(page, 720, "print")
    ends = page.all(
        "#classes th .cut > :last-child",
        "e.getBoundingClientRect().right <= e.closest('th').getBoundingClientRect().right",
    )
    assert len(ends) == 4 and all(ends)


def test_paper_keeps_sections_whole_and_charts_of_one_size(page, two, many):
    resize(page, 720, "print")
    page.open(two)
    shown = "getComputedStyle(e).display !== 'none' && e.textContent.length > 0"
    assert page.all("#minus", shown) == [True]
    whole = page.all(".split > div, .split > div > section, .pair", "getComputedStyle(e).breakInside")
    assert whole == ["avoid"] * 4  # WebKit breaks a grid, unless all of it is to stay whole
    unseen = page.all("section.live, #classes", "getComputedStyle(e).contentVisibility")
    assert unseen == ["visible"] * 3  # else WebKit prints empty pages
    widths = page.all("section:not([hidden]) figure svg", "e.getBoundingClientRect().width")
    assert len(widths) == 4 and max(widths) - min(widths) < 1
    edges = page.all("#list th, .facts td", "e.getBoundingClientRect().right")
    assert max(edges) <= 720
    page.click("matrix-0")
    assert page.all("#matrices button", "e.checkVisibility() && e.textContent") == ["first@2", False, False]
    page.js("document.querySelector('#list .open').click()")
    assert page.all("dialog", "[e.open, e.checkVisibility()]") == [[True, False]]  # the report stays whole
    page.click("close")
    page.js("document.documentElement.style.setProperty('--width', 96)")  # as of larger pictures
    assert max(page.all("#groups .picture", "e.getBoundingClientRect().width")) <= 26
    assert max(page.all("#list .picture", "e.getBoundingClientRect().width")) <= 64
    page.open(many)
    assert page.all(".pairs", "e.getBoundingClientRect().height > 0") == [True]
    assert max(page.all("#list th", "e.getBoundingClientRect().right")) <= 720


def test_file_names_as_ids_are_cut_in_their_middle_and_fit_on_paper(page, tmp_path, main):
    names = ["a class " + "with a long name " * 5, "<b>another class", "third"]
    for name in "abcde":
        rows = [f"photos/{'x' * 40}/IMG_{n:04d}_WMM.JPEG,{names[n % 3]},{names[0]}" for n in range(9)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,guess,truth", *rows]))
    page.open(compare(main, tmp_path, *(f"{name}.csv" for name in "abcde")))
    ends = (
        "[e.textContent, e.getBoundingClientRect().right <= e.closest('bdi').getBoundingClientRect().right]"
    )
    assert page.all("#list tr:nth-child(2) .c-id .cut > :last-child", ends) == [["002_WMM.JPEG", True]]
    page.click("chip-all")
    page.click("add")
    page.choose("query-0-2", "img_0004")
    assert page.all("#list [data-id]", "e.dataset.id.slice(-17)") == ["IMG_0004_WMM.JPEG"]
    page.choose("query-0-0", "truth")
    page.choose("query-0-1", "=")
    assert "contains" not in page.all("[data-key=query-0-1] option")
    page.click("no-query")
    page.click("chip-wrong")
    resize(page, 720, "print")
    assert max(page.all("#list th, #list td", "e.getBoundingClientRect().right")) <= 720
    page.choose("guess", 2)
    assert page.text("#filters:not([hidden]) #shown") == "3 of 9 images"
    assert page.all("#filters > *", "e.checkVisibility()") == [True, False]
    resize(page, 390)
    page.js("document.querySelector('#list .open').click()")
    assert page.all("#image", "[e.open, e.scrollWidth - e.clientWidth]") == [[True, 0]]
