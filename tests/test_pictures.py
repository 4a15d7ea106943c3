"""docs/make_pictures.py: what it trains, compares and photographs."""

import importlib.util
import shutil

import pytest
from programs import ROOT

import compare
import train


@pytest.fixture
def pictures():
    pytest.importorskip("selenium")
    path = ROOT / "docs" / "make_pictures.py"
    spec = importlib.util.spec_from_file_location("make_pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_that_are_missing_are_trained_and_then_compared(pictures, finished, tmp_path, monkeypatch):
    """The runs are stood in for by copies of another one; the flags are parsed as train.py does."""
    trained, taken = [], []

    def python(program: str, *arguments: str) -> None:
        if program == "train.py":
            config = train.parse_config(list(arguments))
            trained.append(config)
            shutil.copytree(finished, config.run_dir, ignore=shutil.ignore_patterns("wandb"))
        else:
            arguments = [argument.replace("@5", "@2") for argument in arguments]
            compare.compare(compare.parse_args(arguments))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "python", python)
    monkeypatch.setattr(pictures, "contact_sheet", lambda path: None)
    monkeypatch.setattr(pictures, "screenshot", lambda page, path, *section: taken.append((page, path.name)))
    for _ in range(2):  # the second time the runs are there
        pictures.main(["--data_dir", "somewhere"])
    assert [config.run_dir for config in trained] == ["runs/baseline", "runs/double"]
    assert [(c.l1_size, c.l2_size, c.lr, c.data_dir) for c in trained] == [
        (32, 64, 0.01, "somewhere"),
        (64, 128, 0.02, "somewhere"),
    ]
    names = ["predictions.png", "over-time.png", "by-guess.png"]
    assert [name for _, name in taken] == 2 * names
    assert all((tmp_path / page).exists() and (ROOT / "docs" / name).exists() for page, name in taken)


def test_pictures_show_a_page(pictures, finished, tmp_path):
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("no chromium and chromedriver here")
    out = tmp_path / "page.html"
    compare.compare(compare.parse_args([str(finished), "--no_images", "--out", str(out)]))
    for name, section in (("first.png", None), ("groups.png", "section[aria-labelledby=groups-title]")):
        pictures.screenshot(str(out), tmp_path / name, section)
        with pictures.Image.open(tmp_path / name) as picture:
            width, height = picture.size
        assert width == 1280 and (height == 800 if section is None else 50 < height < 5000)
