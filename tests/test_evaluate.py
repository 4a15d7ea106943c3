import csv
import json

import pytest
import torch
from conftest import assert_one_line_error, assert_usage_error, write_idx, write_mnist_files
from PIL import Image
from programs import run
from test_photos import photograph

from data import load_split
from model import ConvNet, Standardize, export_model


def test_export_reproduces_the_last_epoch(finished, small_dir, tmp_path):
    result = run(
        "evaluate.py", finished / "model.pt", "--data_dir", small_dir, "--predictions", "p.csv", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((finished / "summary.json").read_text())
    assert f"wrong     {summary['wrong']}\n" in result.stdout
    ours, theirs = tmp_path / "p.csv", finished / "predictions" / "epoch-002.csv"
    ours, theirs = ([line.split(",") for line in path.read_text().splitlines()] for path in (ours, theirs))
    assert [row[:3] for row in ours] == [row[:3] for row in theirs] and len(ours) == 501
    scores = [torch.tensor([[float(x) for x in row[3:]] for row in rows[1:]]) for rows in (ours, theirs)]
    assert (scores[0] - scores[1]).abs().max() <= 1e-5


def test_accuracy_per_class_adds_up(finished, small_dir, tmp_path):
    result = run(
        "evaluate.py", finished / "model.pt", "--data_dir", small_dir, "--batch_size", 37, cwd=tmp_path
    )
    classes = [line.split() for line in result.stdout.split("accuracy\n")[1].splitlines()]
    summary = json.loads((finished / "summary.json").read_text())
    assert len(classes) == 10
    assert sum(int(line[3]) for line in classes) == summary["wrong"]
    assert sum(int(line[5]) for line in classes) == 500


def test_model_that_does_not_fit_the_data_is_refused(main, small_dir, tmp_path):
    def export(name, shape, classes):
        model = torch.nn.Sequential(Standardize(0.0, 1.0), ConvNet(len(classes), shape))
        metadata = {"classes": classes, "input": {"shape": [None, *shape]}, "dataset": "mnist", "torch": "2"}
        export_model(model, tmp_path / name, metadata, torch.zeros(2, *shape, dtype=torch.uint8))
        return tmp_path / name

    wide = export("wide.pt", [1, 32, 32], list("0123456789"))
    assert_one_line_error(
        main("evaluate.py", wide, "--data_dir", small_dir, cwd=tmp_path), "wide.pt", "[1, 32, 32]"
    )
    few = export("few.pt", [1, 28, 28], list("01234"))
    assert_one_line_error(
        main("evaluate.py", few, "--data_dir", small_dir, cwd=tmp_path), "few.pt", "5 classes"
    )


def test_bad_input_ends_in_one_line(main, finished, small_dir, tmp_path):
    model = finished / "model.pt"
    assert_one_line_error(main("evaluate.py", "missing.pt", cwd=tmp_path), "missing.pt does not exist")
    assert_usage_error(main("evaluate.py", model, "--batch_size", 0, cwd=tmp_path), "--batch_size")
    assert_usage_error(main("evaluate.py", model, "--colour", cwd=tmp_path), "--colour")
    damaged = write_mnist_files(tmp_path / "damaged", train=10, test=10)
    write_idx(damaged / "MNIST/raw/t10k-labels-idx1-ubyte", torch.zeros(9))
    assert_one_line_error(
        main("evaluate.py", model, "--data_dir", damaged, cwd=tmp_path), "t10k-labels-idx1-ubyte"
    )
    before = model.read_bytes()
    arguments = ("--data_dir", small_dir, "--predictions", model)
    assert_usage_error(main("evaluate.py", model, *arguments, cwd=tmp_path), "replace the model")
    assert model.read_bytes() == before
    arguments = ("--data_dir", small_dir, "--predictions", "no/such/folder.csv")
    assert_one_line_error(main("evaluate.py", model, *arguments, cwd=tmp_path), "no/such/folder.csv")


# ----------------------------------------------------------------------------------------------------------
# Your own pictures


def test_your_own_pictures_are_evaluated(finished, small_dir, tmp_path):
    *_, images, labels = load_split("mnist", small_dir, train=False)
    (tmp_path / "more").mkdir()
    names = ["as it is.png", "inverted.png"] + [f"more/{digit}.jpg" for digit in range(10)]
    Image.fromarray(images[3, 0].numpy()).save(tmp_path / names[0])
    Image.fromarray(255 - images[3, 0].numpy()).convert("RGB").save(tmp_path / names[1])
    for digit in range(10):
        photograph(digit, seed=digit).save(tmp_path / names[2 + digit])
    model, env = finished / "model.pt", {"cwd": tmp_path, "PYTHONIOENCODING": "utf-8"}
    result = run("evaluate.py", model, *names, "--predictions", "own.csv", **env)
    assert result.returncode == 0, result.stderr
    blocks = result.stdout.split("\n\n")[1:-1]
    assert [block.split("  ")[0] for block in blocks] == names
    assert blocks[0].splitlines()[1:] == blocks[1].splitlines()[1:]
    assert "inverted" in blocks[1] and "(" not in blocks[0].splitlines()[0]
    with open(tmp_path / "own.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == names and all(row["truth"] == "" for row in rows)
    for block, row in zip(blocks, rows):
        head, *bars = block.splitlines()
        assert head.split("  ")[1] == row["guess"] and len(bars) == 10
        best = max(range(10), key=lambda k: float(row[f"score_{k}"]))
        lengths = [bar.count("\u2588") for bar in bars]
        assert best == int(row["guess"]) and lengths[best] == max(lengths)
    with open(finished / "predictions" / "epoch-002.csv", newline="") as file:
        expected = list(csv.DictReader(file))[3]
    assert float(rows[0]["score_0"]) == pytest.approx(float(expected["score_0"]), abs=1e-5)
    right = sum(int(row["guess"]) == digit for digit, row in enumerate(rows[2:]))
    assert right >= 7  # by a model that saw 1,500 drawn digits


def test_picture_that_cannot_be_read_is_named(finished, tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    Image.new("L", (300, 300), 200).save(tmp_path / "blank.png")
    model = finished / "model.pt"
    for name, words in (("notes.png", "notes.png cannot be read"), ("none.png", "none.png")):
        result = run("evaluate.py", model, name, cwd=tmp_path)
        assert_one_line_error(result, words)
    both = run("evaluate.py", model, "blank.png", "--predictions", "blank.png", cwd=tmp_path)
    assert_usage_error(both, "replace the model or a picture")
    blank = run("evaluate.py", model, "blank.png", cwd=tmp_path)
    assert blank.returncode == 0 and "no digit found" in blank.stdout
