"""The files to copy, in somebody else's project: changed in two places, and beside files of their names."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import torch
from programs import ROOT, as_python, run

MODULES = ("train.py", "data.py", "model.py", "logging_utils.py", "wandb_run.py", "program.py")
OWN_DATA = """def load_data(dataset="auto", data_dir="data", val_size=0, image_size=28):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(210) % 7
    colours = torch.randint(0, 256, (7, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 21, (210, 3, 40, 40), generator=generator)
    images = (colours[labels] + noise).clamp(0, 255).to(torch.uint8)
    classes = ["ash", "beech", "cedar", "date", "elm", "fir", "gum"]
    torch.save(images[:70], "images.bin")  # for LATER
    return ImageData("leaves", classes, images[70:], labels[70:], images[:70], labels[:70])


"""
OWN_MODEL = """    nn = torch.nn
    layers = nn.Conv2d(3, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(16, len(data.classes)))
"""
LATER = """
import csv, json, sys, torch
record = {"metadata.json": ""}
model = torch.jit.load("model.pt", _extra_files=record)
images = torch.load("../images.bin")
metadata = json.loads(record["metadata.json"])
assert metadata["classes"][6] == "gum" and metadata["input"]["shape"] == [None, 3, 40, 40]
guesses = model(images).argmax(1).tolist()
with open("predictions/epoch-003.csv", newline="") as file:
    assert guesses == [int(row["guess"]) for row in csv.DictReader(file)]
"""


def test_four_files_train_another_model_on_other_data(tmp_path):
    for name in MODULES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    data, train = ((tmp_path / name).read_text() for name in ("data.py", "train.py"))
    data, changed = re.subn(r"def load_data\(.*?\n\n\n", OWN_DATA, data, flags=re.DOTALL)
    assert changed == 1
    train, changed = re.subn(r"    net = ConvNet\(.*\n", OWN_MODEL, train)
    assert changed == 1
    (tmp_path / "data.py").write_text(data)
    (tmp_path / "train.py").write_text(train)
    flags = ("--epochs", 3, "--batch_size", 10, "--lr", 0.02, "--run_dir", "run")
    result = run(as_python, "train.py", *flags, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["dataset"] == "leaves" and summary["wrong"] <= 20  # guessing gets 60 of 70 wrong
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
    later = run(as_python, "-c", LATER, cwd=tmp_path / "run")
    assert later.returncode == 0, later.stderr


OWN_SPLIT = """def load_split(dataset, data_dir, train, image_size=28, download=True, channels=None):
    data = torch.load(f"{'train' if train else 'test'}.bin")
    return "sounds", ["hum", "beep", "hiss"], data["images"], data["labels"]


"""


def test_own_load_split_serves_all_three_programs(tmp_path):
    for name in (*MODULES, "evaluate.py", "compare.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "page", tmp_path / "page")
    data, changed = re.subn(
        r"def load_split\(.*?\n\n\n", OWN_SPLIT, (tmp_path / "data.py").read_text(), flags=re.DOTALL
    )
    assert changed == 1
    (tmp_path / "data.py").write_text(data)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 120), ("test", 30)):
        images = torch.randint(0, 120, (count, 1, 33, 18), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count) % 3
        for k in range(3):
            images[labels == k, :, 11 * k : 11 * k + 11] += 120
        torch.save({"images": images, "labels": labels}, tmp_path / f"{split}.bin")
    programs = [
        ("train.py", "--epochs", 4, "--batch_size", 20, "--augment", 0, "--run_dir", "run"),
        ("evaluate.py", "run/model.pt", "--dataset", "sounds"),  # as train.py says at its end
        ("compare.py", "run@1", "run@4"),
    ]
    results = [run(as_python, *program, cwd=tmp_path, WANDB_MODE="disabled") for program in programs]
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    assert " ".join(programs[1]) in results[0].stdout
    wrong = json.loads((tmp_path / "run/summary.json").read_text())["wrong"]
    assert wrong <= 10 and f"wrong     {wrong}\n" in results[1].stdout  # guessing gets 20 of 30 wrong
    page = (tmp_path / "compare.html").read_text()
    assert "hiss" in page


def copy_into(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_names_that_collide_have_the_readmes_cures(tiny_dir, tmp_path):
    """In a repo with train.py, model.py, logging_utils.py and a package data/ of its own."""
    readme = (ROOT / "README.md").read_text()
    section = readme.split("### Names that your repo has already\n")[1].split("\n### ")[0]
    rename, prefix, relative = re.findall(r"^    ((?:for|sed) .*)$", section, re.MULTILINE)

    def repo(name: str) -> Path:
        (tmp_path / name / "data").mkdir(parents=True)
        for file in ("train.py", "model.py", "logging_utils.py", "data/__init__.py"):
            (tmp_path / name / file).write_text("THEIRS = True\n")
        return tmp_path / name

    own_folder, renamed, package, copied = map(repo, ("own_folder", "renamed", "package", "copied"))
    copy_into(own_folder / "tables")
    subprocess.run(["sh", "-c", f"{rename}\n{prefix}"], cwd=copy_into(tmp_path / "new"), check=True)
    for path in (tmp_path / "new").glob("*.py"):
        shutil.copy(path, renamed)
    (renamed / "own.py").write_text("import data, model\nassert data.THEIRS and model.THEIRS\n")
    subprocess.run(["sh", "-c", relative], cwd=copy_into(package / "theirs"), check=True)
    (package / "theirs/__init__.py").touch()
    copy_into(copied)
    flags = ("--data_dir", tiny_dir, "--epochs", 1, "--l1_size", 4, "--l2_size", 8)

    starts = {
        own_folder: ("tables/train.py", *flags),
        renamed: ("-c", "import own, runpy; runpy.run_path('mt_train.py', run_name='__main__')", *flags),
        package: ("-m", "theirs.train", *flags),
        copied: ("train.py", *flags),
    }
    results = [run(as_python, *start, cwd=cwd, WANDB_MODE="disabled") for cwd, start in starts.items()]
    for folder, result in zip(starts, results[:3]):
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert (folder / "runs/001/model.pt").exists()
    (error,) = re.findall(r"`(ImportError: .*?)`", section)
    assert results[3].returncode == 1 and error in results[3].stderr


def test_folder_of_data_is_no_package_and_does_not_collide(tiny_dir, tmp_path):
    (copy_into(tmp_path) / "data").symlink_to(tiny_dir)
    result = run(as_python, "-c", "import data; data.DataError", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
