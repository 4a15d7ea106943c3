"""The four files in somebody else's project, changed in the two places that the README names."""

import json
import re
import shutil

from programs import ROOT, run_python

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
OWN_MODEL = """    from torchvision.models import resnet18

    net = resnet18(num_classes=len(data.classes))
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
    flags = ("--epochs", 3, "--batch_size", 20, "--lr", 0.002, "--run_dir", "run")
    result = run_python("train.py", *flags, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["dataset"] == "leaves" and summary["wrong"] <= 20  # guessing gets 60 of 70 wrong
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
    later = run_python("-I", "-W", "ignore", "-c", LATER, cwd=tmp_path / "run")
    assert later.returncode == 0, later.stderr
