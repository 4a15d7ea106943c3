"""Make the pictures in this folder: python docs/make_pictures.py [--data_dir DIR]

It trains runs/baseline and runs/double first, as far as they are not there. It needs requirements-dev.txt,
chromium and chromedriver.
"""

import argparse
import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from sources.drawn import draw_digits  # noqa: E402

RUNS = {
    "runs/baseline": [],
    "runs/double": ["--l1_size", "64", "--l2_size", "128", "--lr", "0.02"],
}
WIDTH, HEIGHT = 1280, 800


def contact_sheet(path: Path, columns: int = 24) -> None:
    """Synthetic digits, one row per class."""
    images, labels = draw_digits(2000, seed=0)
    rows = [torch.cat(list(images[labels == digit, 0][:columns]), dim=1) for digit in range(10)]
    sheet = Image.fromarray(255 - torch.cat(rows).numpy())
    size = (sheet.width * 3 // 2, sheet.height * 3 // 2)
    sheet.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def open_page(page: str, height: int) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme = {"name": "prefers-color-scheme", "value": "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
    browser.get(Path(page).resolve().as_uri())
    while not browser.execute_script("return document.documentElement.dataset.ready"):
        time.sleep(0.1)
    return browser


def screenshot(page: str, path: Path, section: str | None = None) -> None:
    """Save the first screen of a page, or the whole of a section."""
    browser = open_page(page, HEIGHT if section is None else 6000)
    time.sleep(1)  # until the browser has drawn everything
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    if section is not None:
        box = browser.find_element(By.CSS_SELECTOR, section).rect
        picture = picture.crop((0, box["y"] - 4, WIDTH, box["y"] + box["height"] + 8))
    browser.quit()
    picture.quantize(128).save(path, optimize=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    data_dir = parser.parse_args(argv).data_dir
    contact_sheet(DOCS / "synthetic.png")
    for run_dir, flags in RUNS.items():
        if not Path(run_dir, "model.pt").exists():
            where = ("--dataset", "mnist", "--data_dir", data_dir, "--run_dir", run_dir)
            python("train.py", "--resume", *where, *flags)
    python("compare.py", "runs/baseline@1", "runs/baseline@5", "--out", "runs/epochs.html")
    python("compare.py", "runs/baseline", "runs/double", "--out", "runs/models.html")
    screenshot("runs/epochs.html", DOCS / "predictions.png")
    screenshot("runs/models.html", DOCS / "over-time.png", "#answers section:not([hidden]) .top")
    screenshot("runs/models.html", DOCS / "by-guess.png", "section[aria-labelledby=groups-title]")


if __name__ == "__main__":
    main()
