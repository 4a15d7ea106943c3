"""What compare.py says of a folder of pictures: which file an image is, instead of its number."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import load_data

CLASSES = ["cat", "dog"]
LAYOUTS = {  # folders of the data set, and whether the first of them is the test set
    "a test set": ("test", "train"),
    "a test set in a folder of its own": ("inner/val", "inner/train"),
    "no test set": ("",),
    "only train": ("train",),
}


def make_set(root: Path, parts: tuple[str, ...]) -> Path:
    """Twenty pictures of each class in each part. Their names tell the one value of their pixels."""
    values = iter(range(255))
    for part in parts:
        for name in CLASSES:
            (root / part / name / "by day").mkdir(parents=True)
            for _ in range(20):
                value = next(values)
                Image.new("L", (9, 9), value).save(root / part / name / "by day" / f"{value:03d}.png")
    return root


def write_run(path: Path, labels: list[int], wrong: int, config: dict) -> None:
    """Two epochs of predictions, of which one image is wrong."""
    (path / "predictions").mkdir(parents=True)
    rows = ["id,guess,truth,score_0,score_1"]
    for n, label in enumerate(labels):
        guess = 1 - label if n == wrong else label
        rows.append(f"{n},{guess},{label},{1 - guess},{guess}")
    for epoch in (1, 2):
        (path / "predictions" / f"epoch-{epoch:03d}.csv").write_text("\n".join(rows) + "\n")
    (path / "config.json").write_text(json.dumps(config))
    (path / "summary.json").write_text("{}")


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_the_paths_of_the_pictures(layout, main, tmp_path):
    folder = make_set(tmp_path / "set", LAYOUTS[layout])
    data = load_data(str(folder), image_size=9)
    values, labels = data.eval_images[:, 0, 0, 0].tolist(), data.eval_labels.tolist()
    val_size = 0 if "a test set" in layout else len(labels)
    assert len(labels) == (40 if val_size == 0 else 8)
    config = {"dataset": data.name, "classes": CLASSES, "image_size": 9, "val_size": val_size}
    config["data_sha256"] = data.fingerprint()
    write_run(tmp_path / "run", labels, 5, config)

    result = main("compare.py", "run", "run@1", "--suspects", "s.csv", cwd=tmp_path)
    assert result.returncode == 0 and "warning" not in result.stdout, result
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(Path(row["id"]).stem) for row in rows] == [values[5], *values[:5], *values[6:]]
    assert all((folder / row["id"]).is_file() and row["truth"] in row["id"] for row in rows)
    assert [row["suggested"] for row in rows] == [CLASSES[1 - labels[5]], *[""] * (len(labels) - 1)]
    assert re.search(rf"^ +{rows[0]['id']} +{CLASSES[labels[5]]} ", result.stdout, re.MULTILINE)
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page(tmp_path))[1]
    assert [int(Path(path).stem) for path in json.loads(facts)["ids"]] == values

    os.rename(folder, tmp_path / "elsewhere")
    assert main("compare.py", "run", "--no_images", "--suspects", "s.csv", cwd=tmp_path).returncode == 0
    assert (tmp_path / "s.csv").read_text().splitlines()[1].startswith("5,")
    assert "elsewhere" not in page(tmp_path)
    flags = ("--dataset", "elsewhere", "--suspects", "s.csv")
    assert main("compare.py", "run", *flags, cwd=tmp_path).returncode == 0
    assert (tmp_path / "s.csv").read_text().splitlines()[1].startswith(rows[0]["id"])

    Image.new("L", (9, 9), 255).save(tmp_path / "elsewhere" / rows[0]["id"])
    changed = main("compare.py", "run", "--dataset", "elsewhere", cwd=tmp_path)
    assert "pictures of elsewhere are not those that run@2 was evaluated on" in changed.stdout


def page(folder: Path) -> str:
    return (folder / "compare.html").read_text()


def test_a_path_of_any_bytes_is_text(main, tmp_path):
    folder = make_set(tmp_path / "set", ("train", "test"))
    first = next((folder / "test/cat/by day").iterdir())
    os.rename(first, os.fsencode(first.parent) + b"/\xff\x1b.png")
    data = load_data(str(folder), image_size=9)
    labels = data.eval_labels.tolist()
    wrong = int(np.argmax(data.eval_images[:, 0, 0, 0].numpy() == int(first.stem)))
    write_run(tmp_path / "run", labels, wrong, {"dataset": data.name, "classes": CLASSES, "image_size": 9})
    result = main("compare.py", "run", "--suspects", "s.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout and "test/cat/by day/\\xff\\x1b.png" in result.stdout
    assert "test/cat/by day/\\xff" in (tmp_path / "s.csv").read_text()
