import csv
import hashlib
import json
import os
import shutil
import socket
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import assert_one_line_error, assert_usage_error, write_idx, write_mnist_files
from PIL import Image
from programs import run
from test_photos import photograph
from torch import Tensor

import evaluate
import program
from data import load_split
from model import Classifier, ConvNet, export_model
from sources.drawn import draw_digits
from sources.errors import SourceError
from sources.pictures import open_picture


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


def table_of(output: str) -> dict[str, list[str]]:
    """The rows of the report by their names."""
    lines = output.split("  support  wrong\n")[1].split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1  # the columns are aligned
    return {line.rsplit(maxsplit=5)[0]: line.rsplit(maxsplit=5)[1:] for line in lines}


def test_report_has_the_figures_of_every_class(finished, small_dir, tmp_path):
    flags = ("--data_dir", small_dir, "--batch_size", 37, "--predictions", "p.csv")
    result = run("evaluate.py", finished / "model.pt", *flags, cwd=tmp_path)
    table = table_of(result.stdout)
    with open(tmp_path / "p.csv", newline="") as file:
        pairs = [(row["guess"], row["truth"]) for row in csv.DictReader(file)]
    by_hand = {}
    for digit in "0123456789":
        hits = sum(guess == truth == digit for guess, truth in pairs)
        guessed, support = (sum(pair[k] == digit for pair in pairs) for k in (0, 1))
        by_hand[digit] = (hits / guessed, hits / support, 2 * hits / (guessed + support), support)
        assert int(table[digit][4]) == support - hits
    wrong = sum(guess != truth for guess, truth in pairs)
    rows = list(by_hand.values())
    by_hand["macro avg"] = [sum(row[column] for row in rows) / 10 for column in range(3)]
    by_hand["weighted avg"] = [sum(row[column] * row[3] for row in rows) / 500 for column in range(3)]
    for name, figures in by_hand.items():
        assert [float(text) for text in table[name][:3]] == pytest.approx(figures[:3], abs=6e-5)
    assert table["macro avg"][3:] == table["weighted avg"][3:] == ["500", str(wrong)]


def test_report_on_absent_classes_and_long_names(capsys):
    classes = ["never", "x" * 70, "\u732b" * 30, "a\tb\x1b[31m", "guessed only", "ok"]
    labels, guesses = torch.tensor([1, 1, 2, 3, 5]), torch.tensor([1, 4, 2, 3, 5])
    evaluate.print_report(guesses, labels, classes)
    lines = capsys.readouterr().out.splitlines()
    widths = {program.display_width(line) for line in lines[1:]}
    assert widths == {program.MAX_NAME + len("  precision  recall      f1  support  wrong")}
    assert lines[1].split() == ["never", "-", "-", "-", "0", "0"]
    assert lines[5].split()[2:] == ["0.0000", "-", "0.0000", "0", "0"]
    assert lines[4].startswith("a\\tb\\x1b[31m ") and "\u2026" in lines[2] and "\u2026" in lines[3]
    # As scikit-learn's: what is divided by zero counts as 0, and a class that is absent does not count.
    f1 = [2 / 3, 1, 1, 0, 1]
    assert float(lines[7].split()[4]) == pytest.approx(sum(f1) / 5, abs=6e-5)
    assert float(lines[8].split()[4]) == pytest.approx((2 * f1[0] + 3) / 5, abs=6e-5)


def export(path, shape=(1, 28, 28), classes="0123456789", **metadata):
    model = Classifier(ConvNet(len(classes), shape), 0.1, 0.3)
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    record = {"classes": list(classes), "dataset": "mnist", "torch": "2", **metadata}
    path.write_bytes(export_model(model, images, record)["model.pt"])
    return path


def test_model_that_does_not_fit_the_data_is_refused(main, small_dir, tmp_path):
    wide, few = export(tmp_path / "wide.pt", (1, 32, 32)), export(tmp_path / "few.pt", classes="01234")
    other = export(tmp_path / "other.pt", classes="01x3456789")
    cases = {
        wide: "10 classes of [1, 32, 32]",
        few: "5 classes",
        other: "has class 2 called x",
    }
    for path, words in cases.items():
        result = main("evaluate.py", path, "--data_dir", small_dir, cwd=tmp_path)
        assert_one_line_error(result, path.name, words)


def test_folder_that_is_not_here_is_asked_for(main, tmp_path):
    path = export(tmp_path / "model.pt", dataset="folder my leaves\x1b[2J")
    result = main("evaluate.py", path, cwd=tmp_path)
    assert_one_line_error(
        result, "trained on folder my leaves\\x1b[2J, which is not here: give --dataset FOLDER"
    )
    assert "\x1b" not in result.stdout


def test_set_that_a_gpu_cannot_hold_is_moved_batch_by_batch(small_dir, tmp_path, monkeypatch, capsys):
    """On a stand-in for a GPU: a CPU that says it is one, and has so much memory."""
    gpu, moved, to = torch.device("cuda"), [], Tensor.to

    def move(tensor: Tensor, *target, **options) -> Tensor:
        if target[:1] != (gpu,):
            return to(tensor, *target, **options)
        moved.append(len(tensor) if tensor.dim() == 4 else 0)  # not of labels
        return tensor

    flags = ["--data_dir", str(small_dir), "--batch_size", "100"]
    args = evaluate.parse_args([str(export(tmp_path / "model.pt")), *flags])
    exported = evaluate.load(args.model, torch.device("cpu"))
    exported.device = gpu
    monkeypatch.setattr(Tensor, "to", move)
    most, reports = [], []
    for free in (10**9, 1000):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        moved.clear()
        evaluate.evaluate_test_set(exported, args)
        most.append(max(moved))
        reports.append(capsys.readouterr().out.split("speed")[0])
    assert most == [500, 100] and reports[0] == reports[1]


def test_every_pass_is_in_full_precision(small_dir, tmp_path, monkeypatch):
    """A GPU would else convolve in TF32, and two passes differ by more than a deterministic model's may."""
    load, seen = evaluate.load, []

    def load_and_watch(*arguments) -> evaluate.Exported:
        exported = load(*arguments)
        model = exported.model

        def forward(images: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return model(images)

        exported.model = forward
        return exported

    monkeypatch.setattr(evaluate, "load", load_and_watch)
    evaluate.evaluate(
        evaluate.parse_args([str(export(tmp_path / "model.pt")), "--data_dir", str(small_dir)])
    )
    assert len(seen) > 2 and set(seen) == {"ieee"}
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # the default


def assert_no_word_in(path: Path, *words: str) -> None:
    with zipfile.ZipFile(path) as file:
        for member in file.namelist():
            content = file.read(member)
            assert not any(word.encode() in content for word in words), member


def test_model_of_a_folder_is_evaluated_on_a_moved_copy(tmp_path):
    images, labels = draw_digits(120, seed=0)
    for i, (image, label) in enumerate(zip(images, labels)):
        folder = tmp_path / "secret" / "digits" / ("test" if i % 4 == 0 else "train") / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    flags = ("--dataset", "secret/digits", "--epochs", 1, "--run_dir", "run")
    result = run("train.py", *flags, cwd=tmp_path, WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    assert_no_word_in(tmp_path / "run/model.pt", "secret", str(tmp_path))
    summary = json.loads((tmp_path / "run/summary.json").read_text())

    (tmp_path / "secret/digits").rename(tmp_path / "moved")
    result = run("evaluate.py", "run/model.pt", cwd=tmp_path)
    assert_one_line_error(result, "trained on folder digits, which is not here: give --dataset FOLDER")
    result = run("evaluate.py", "run/model.pt", "--dataset", "moved", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"wrong     {summary['wrong']}\n" in result.stdout
    assert "30 test images, those that the model's own metrics are of\n" in result.stdout
    next((tmp_path / "moved/test").rglob("*.png")).unlink()
    result = run("evaluate.py", "run/model.pt", "--dataset", "moved", cwd=tmp_path)
    assert "29 test images\n" in result.stdout
    shutil.copytree(next((tmp_path / "moved/test").iterdir()), tmp_path / "other/test/cat")
    result = run("evaluate.py", "run/model.pt", "--dataset", "other", cwd=tmp_path)
    assert_one_line_error(result, "/other has 1 classes of [1, 28, 28]", "Choose the --dataset that it was")


def test_nothing_is_downloaded_on_behalf_of_a_file(main, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was used"))
    model = export(tmp_path / "model.pt")
    for flags in ((), ("--dataset", "")):  # an empty one: a variable of the shell that is not set
        result = main("evaluate.py", model, *flags, cwd=tmp_path)
        assert_one_line_error(result, "images-idx3-ubyte is missing", "Or download it: --dataset mnist.")
    assert os.listdir(tmp_path) == ["model.pt"]


class Answers(torch.nn.Module):
    """A program of somebody else, with answers that are not logits."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor):
        logits = images.float().mean((2, 3)) + torch.arange(10)
        if self.kind == "probabilities":
            return logits.softmax(1)
        if self.kind == "sigmoid":
            return (logits / 10 - 3).sigmoid()
        if self.kind == "statistics of the batch":
            return logits - logits.mean(0)
        if self.kind == "one image":
            return logits.view(1, 10)
        if self.kind == "no memory":
            return torch.empty([1000000000000, 1000])
        if self.kind == "random":
            return logits + torch.rand(logits.shape)
        if self.kind == "int8":  # their steps, in dynamic quantization, depend on the batch
            return (logits - logits.mean(1, True)) * (1 + 0.01 / len(images))
        if self.kind == "zeros":
            return 0 * logits
        if self.kind == "NaN":
            return logits / 0 * 0
        return logits[:, :3] if self.kind == "three" else logits


class Tuple(torch.nn.Module):
    def forward(self, images: Tensor):
        return images, images


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("probabilities", "gives probabilities, not logits"),
        ("random", "is random, or gives other logits for an image alone than in a batch"),
        ("statistics of the batch", "or gives other logits for an image alone than in a batch"),
        ("one image", "10]' is invalid for input of size 1000. It must take uint8 images (N, C, H, W), any"),
        ("no memory", "out of memory. Lower --batch_size"),
        ("NaN", "gives logits that are NaN"),
        ("three", "gives logits of shape [2, 3], not [2, 10]"),
        ("tuple", "gives a tuple, not logits"),
    ],
)
def test_answers_that_are_not_logits_are_named(kind, words, main, small_dir, tmp_path):
    spec = {"shape": [None, 1, 28, 28]}
    record = {"classes": list("0123456789"), "input": spec, "dataset": "mnist", "torch": "2"}
    model = torch.jit.script(Tuple() if kind == "tuple" else Answers(kind))
    torch.jit.save(model, tmp_path / "m.pt", {"metadata.json": json.dumps(record)})
    batch = ("--batch_size", 1) if kind == "three" else ()
    result = main("evaluate.py", "m.pt", "--data_dir", small_dir, *batch, cwd=tmp_path)
    assert_one_line_error(result, words, *["m.pt"] * (kind != "no memory"))


@pytest.mark.parametrize("kind", ["probabilities", "zeros", "sigmoid", "int8"])
def test_probabilities_are_told_from_other_answers(kind, main, tmp_path):
    spec = {"shape": [None, 1, 28, 28]}
    record = {"classes": list("0123456789"), "input": spec, "dataset": "mnist", "torch": "2"}
    torch.jit.save(torch.jit.script(Answers(kind)), tmp_path / "m.pt", {"metadata.json": json.dumps(record)})
    for digit in (1, 3):
        photograph(digit, seed=digit).save(tmp_path / f"{digit}.png")
    for pictures in (["1.png"], ["1.png", "3.png"]):
        result = main("evaluate.py", "m.pt", *pictures, cwd=tmp_path)
        status = 2 if kind == "probabilities" else 0
        assert result.returncode == status and ("gives probabilities" in result.stderr) == (status == 2)
        is_sigmoid = kind == "sigmoid" and len(pictures) > 1  # of one picture it is not clear
        assert ("WARNING: all logits are from 0 to 1, as a sigmoid" in result.stderr) == is_sigmoid


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": []}, "says nothing usable on its classes"),
        ({"classes": "0123456789"}, "says nothing usable on its classes"),
        ({"input": {"shape": [None, float("inf"), 28, 28]}}, "says nothing usable"),
        ({"input": None}, "says nothing usable"),
        ({"format": 3}, "was written by a newer version"),
    ],
)
def test_metadata_that_cannot_be_used_end_in_one_line(change, words, main, tmp_path):
    record = {"classes": ["a", "b"], "input": {"shape": [None, 1, 28, 28]}, "dataset": "mnist", "torch": "2"}
    text = json.dumps(record | change)
    torch.jit.save(torch.jit.script(Answers("logits")), tmp_path / "m.pt", {"metadata.json": text})
    assert_one_line_error(main("evaluate.py", "m.pt", cwd=tmp_path), words)


def make_unusable_files(folder: Path) -> dict[str, str]:
    """Files that are not exported models: name -> words of the sentence on it."""
    net = torch.nn.Linear(2, 2)
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "module.pt")
    torch.save({"epoch": 3, "model": net.state_dict()}, folder / "checkpoint.pt")
    torch.save(net.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(net), folder / "bare.pt")
    (folder / "model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    (folder / "text.pt").write_text("hello")
    (folder / "empty.pt").touch()
    whole = export(folder / "whole.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.pt").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with zipfile.ZipFile(folder / "whole.pt") as old, zipfile.ZipFile(folder / "newer.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"999" if name == "archive/version" else old.read(name))
    with zipfile.ZipFile(folder / "compiled.pt2", "w") as file:
        file.writestr("model/archive_format", "pt2")
        file.writestr("model/data/aotinductor/model/model.so", "")
    with zipfile.ZipFile(folder / "pictures.zip", "w") as file:
        file.writestr("a.png", "")
    (folder / "runs").mkdir()
    os.mkfifo(folder / "pipe")
    weights = "holds weights, a checkpoint or a pickled module"
    return {
        "weights.pt": weights,
        "module.pt": weights,
        "checkpoint.pt": weights,
        "old.pt": "is not a file in torch's format, or in its old one",
        "bare.pt": "has no metadata.json in it",
        "model.onnx": "is an ONNX file",
        "text.pt": "is not a file in torch's format",
        "empty.pt": "is not a file in torch's format",
        "cut.pt": "is damaged",
        "flipped.pt": "is damaged, in archive/",
        "newer.pt": f"cannot be loaded by torch {torch.__version__} (torch 2 wrote it: try that one): ",
        "compiled.pt2": "was compiled by AOTInductor",
        "pictures.zip": "is a ZIP file, but not an exported model",
        "runs": "is a folder. Name the file in it, such as runs/model.pt",
        "pipe": "is a pipe or a device",
        "/dev/zero": "is a pipe or a device",
        "https://example.org/model.pt": "is a URL. Download the file",
        "missing.pt": "does not exist",
    }


def test_file_that_is_not_an_exported_model_is_told_what_it_is(main, tmp_path):
    for name, words in make_unusable_files(tmp_path).items():
        assert_one_line_error(main("evaluate.py", name, cwd=tmp_path), f"{name} {words}")


def test_predictions_that_cannot_be_written_are_found_first(main, finished, small_dir, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "no" / "such.csv")
    long = "n" * 250 + ".csv"
    for path in ("no/such/folder.csv", "folder.csv", "/dev/full", "dangling.csv", long):
        flags = ("--data_dir", small_dir, "--predictions", path)
        result = main("evaluate.py", finished / "model.pt", *flags, cwd=tmp_path)
        assert_one_line_error(result, path)
        assert result.stdout == ""
    piped = ("--predictions", "/dev/stdout")
    result = run("evaluate.py", finished / "model.pt", *piped, cwd=tmp_path)
    assert_one_line_error(result, "/dev/stdout: is not a file that can be replaced")


def test_sha256_and_calibration_are_printed(finished, small_dir, tmp_path):
    result = run("evaluate.py", finished / "model.pt", "--data_dir", small_dir, cwd=tmp_path)
    summary = json.loads((finished / "summary.json").read_text())
    known = hashlib.sha256((finished / "model.pt").read_bytes()).hexdigest()
    assert summary["sha256"]["model.pt"] == known and f"sha256    {known}\n" in result.stdout
    assert f"ece       {summary['ece']:.2f} %" in result.stdout
    assert "500 test images, those that the model's own metrics are of\n" in result.stdout


def test_bad_input_ends_in_one_line(main, finished, small_dir, tmp_path):
    model = finished / "model.pt"
    assert_usage_error(main("evaluate.py", model, "--batch_size", 0, cwd=tmp_path), "--batch_size")
    assert_usage_error(main("evaluate.py", model, "--colour", cwd=tmp_path), "--colour")
    assert "required: MODEL.pt\n" in main("evaluate.py", cwd=tmp_path).stderr  # pictures are not
    assert_usage_error(main("evaluate.py", model, "a.png", "--dataset", "mnist", cwd=tmp_path), "--dataset")
    damaged = write_mnist_files(tmp_path / "damaged", train=10, test=10)
    write_idx(damaged / "MNIST/raw/t10k-labels-idx1-ubyte", torch.zeros(9))
    result = main("evaluate.py", export(tmp_path / "mnist.pt"), "--data_dir", damaged, cwd=tmp_path)
    assert_one_line_error(result, "t10k-labels-idx1-ubyte")
    assert "--dataset" not in result.stderr  # only missing files are downloaded
    elsewhere = main("evaluate.py", tmp_path / "mnist.pt", cwd=tmp_path)
    assert_one_line_error(
        elsewhere, "name the folder with --data_dir, or", "Or download it: --dataset mnist."
    )
    for name in ("model.pt", "model.pt2", "checkpoint.pt", "config.json", "predictions/epoch-001.csv"):
        path = finished / name
        before = path.read_bytes()
        arguments = ("--data_dir", small_dir, "--predictions", path)
        assert_usage_error(main("evaluate.py", model, *arguments, cwd=tmp_path), "replace the model, a file")
        assert path.read_bytes() == before


# ---- Your own pictures ----


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


def test_folder_of_pictures_stands_for_the_pictures_in_it(finished, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("b.png", "a.jpg", ".hidden.png"):
        photograph(3, seed=1).save(tmp_path / "mine" / name)
    (tmp_path / "mine" / "notes.txt").write_text("not a picture")
    result = run("evaluate.py", finished / "model.pt", "mine", "--predictions", "own.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "own.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["mine/a.jpg", "mine/b.png"]
    result = run("evaluate.py", finished / "model.pt", "mine", "--predictions", "mine/a.jpg", cwd=tmp_path)
    assert_one_line_error(result, "would replace the picture")
    Image.open(tmp_path / "mine/a.jpg").verify()
    (tmp_path / "none/folder.png").mkdir(parents=True)
    result = run("evaluate.py", finished / "model.pt", "none", cwd=tmp_path)
    assert_one_line_error(result, "none has no pictures in it")


def test_picture_that_cannot_be_read_is_named(finished, tmp_path, monkeypatch):
    (tmp_path / "notes.png").write_text("hello")
    Image.new("L", (300, 300), 200).save(tmp_path / "blank.png")
    model = finished / "model.pt"
    (tmp_path / "gone.png").symlink_to("nowhere")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    for name, words in (
        ("notes.png", "notes.png cannot be read as a picture: "),
        ("large.png", "attack. Remove it or save it again."),
        ("none.png", "error: none.png does not exist. Check its name."),
        ("gone.png", "error: gone.png does not exist. Check its name."),
        ("/dev/null", "error: /dev/null is not a file. Save the picture in a file."),
    ):
        result = run("evaluate.py", model, name, cwd=tmp_path)
        assert_one_line_error(result, words)
    # The tests' user may be root, who may read everything.
    monkeypatch.setattr(Image, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(SourceError, match="blank.png cannot be read: Permission denied. Check its perm"):
        open_picture(tmp_path / "blank.png")
    monkeypatch.undo()
    both = run("evaluate.py", model, "blank.png", "--predictions", "blank.png", cwd=tmp_path)
    assert_usage_error(both, "replace the model, a file of its run, or a picture")
    blank = run("evaluate.py", model, "blank.png", cwd=tmp_path)
    assert blank.returncode == 0 and "no digit found" in blank.stdout
