"""evaluate.py with files from strangers: pictures of which some are damaged, models with absurd metadata."""

import csv
import json
import os
import socket
import sys
import zipfile

import numpy
import pytest
import torch
from conftest import assert_one_line_error
from PIL import Image
from test_evaluate import Answers, export
from test_photos import photograph

import evaluate
from sources.drawn import draw_digits


def save_pictures(folder, count: int) -> list[str]:
    for i in range(count):
        photograph(i % 10, seed=i).resize((90, 120)).save(folder / f"{i:02d}.jpg")
    return [f"{i:02d}.jpg" for i in range(count)]


def test_unreadable_pictures_do_not_lose_the_results_of_the_others(main, tmp_path):
    model, names = export(tmp_path / "model.pt"), save_pictures(tmp_path, 4)
    whole = (tmp_path / names[0]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    given = [
        "cut.jpg",
        *names[:2],
        "text.png",
        "pipe.png",
        *names[2:],
        names[0],
        "empty.png",
        "/dev/zero",
        "no.png",
    ]
    result = main("evaluate.py", model, given[0], "--predictions", "p.csv", *given[1:], cwd=tmp_path)
    assert result.returncode == 2
    with open(tmp_path / "p.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [*names, names[0]]
    assert [block.split("  ")[0] for block in result.stdout.split("\n\n")[1:-1]] == [*names, names[0]]
    (line,) = result.stderr.splitlines()
    bad = "cut.jpg, text.png, pipe.png, empty.png, /dev/zero, no.png"
    assert line.startswith(f"error: 6 pictures cannot be read: {bad}. The first: cut.jpg cannot be read")
    result = main("evaluate.py", model, *["no.png"] * 3, *(f"no{i}" for i in range(20)), cwd=tmp_path)
    assert_one_line_error(result, "21 pictures cannot be read: no.png, no0,", "no8, ...")


def test_progress_is_shown_on_a_terminal_only(main, tmp_path, monkeypatch):
    model, names = export(tmp_path / "model.pt"), save_pictures(tmp_path, 3)
    assert main("evaluate.py", model, *names, cwd=tmp_path).stderr == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "/3 [" in main("evaluate.py", model, *names, cwd=tmp_path).stderr


def test_control_characters_of_names_do_not_reach_the_terminal(main, tmp_path):
    wild = "a\x1b[2J\r\nb"
    export(tmp_path / f"{wild}.pt", classes=[f"{wild}{k}" for k in range(10)], dataset=wild, torch=wild)
    picture = save_pictures(tmp_path, 1)[0]
    os.rename(tmp_path / picture, tmp_path / f"{wild}.jpg")
    result = main("evaluate.py", f"{wild}.pt", f"{wild}.jpg", "--predictions", f"{wild}.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    failed = main("evaluate.py", f"{wild}.pt", f"{wild}.png", cwd=tmp_path)
    assert_one_line_error(failed, "a\\x1b[2J")
    for text in (result.stdout, failed.stdout, failed.stderr):
        assert "\x1b" not in text and "\r" not in text and "a\\x1b[2J" in text


@pytest.mark.parametrize(
    "change",
    [
        {"input": {"shape": [None, 1, 10**9, 10**9]}},
        {"input": {"shape": [None, 1, 10**40, 28]}},
        {"input": {"shape": [None, 1, 0, 28]}},
        {"input": {"shape": [None, 1, -28, 28]}},
        {"input": {"shape": "NCHW"}},
        {"input": {"shape": [None, 1, 28, 28, 28]}},
        {"classes": 10},
        {"classes": None},
        {"eval": ["sha256"]},
    ],
)
def test_absurd_metadata_end_in_one_line(change, main, tmp_path):
    record = {"classes": ["a", "b"], "input": {"shape": [None, 1, 28, 28]}, "dataset": "mnist", "torch": "2"}
    model, text = torch.jit.script(Answers("logits")), json.dumps(record | change)
    torch.jit.save(model, tmp_path / "m.pt", {"metadata.json": text})
    picture = save_pictures(tmp_path, 1)
    assert_one_line_error(main("evaluate.py", "m.pt", *picture, cwd=tmp_path), "says nothing usable")


def test_no_folder_is_read_because_a_file_says_so(main, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was used"))
    for k, digit in enumerate(draw_digits(8, seed=0)[0][:, 0].numpy()):
        folder = tmp_path / "private" / ("train" if k % 2 else "test") / f"{k // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digit).save(folder / f"{k}.png")
    for name in (str(tmp_path / "private"), "private", "a\0b", "/a\0b", "../private", "auto", ""):
        model = export(tmp_path / "model.pt", classes="01", dataset=name)
        result = main("evaluate.py", model, cwd=tmp_path)
        assert_one_line_error(result, "which is not here: give --dataset FOLDER")
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "private"]


def test_huge_file_is_refused(main, tmp_path, monkeypatch):
    with open(tmp_path / "huge.pt", "wb") as file:
        file.truncate(2**40)  # sparse
    assert_one_line_error(main("evaluate.py", "huge.pt", cwd=tmp_path), "huge.pt has more than")
    monkeypatch.setattr(evaluate, "MAX_FILE", 100_000)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/extra/metadata.json", bytes(10**6))
    assert_one_line_error(main("evaluate.py", "bomb.pt", cwd=tmp_path), "bomb.pt unpacks to more than")


def test_model_of_two_channels_says_that_it_takes_no_pictures(main, tmp_path):
    model = export(tmp_path / "model.pt", (2, 28, 28))
    result = main("evaluate.py", model, *save_pictures(tmp_path, 1), cwd=tmp_path)
    assert_one_line_error(result, "model.pt takes images of 2 channels, and a picture has 1 or 3")


def test_deep_and_transparent_pictures_are_converted_to_what_the_model_takes(main, tmp_path):
    model = export(tmp_path / "model.pt", (3, 40, 40), dataset="folder leaves")
    values = numpy.linspace(0, 4095, 1600).reshape(40, 40)
    Image.fromarray(values.astype("uint16")).save(tmp_path / "deep.png")
    Image.fromarray((values / 4095 * 255).round().astype("uint8")).save(tmp_path / "plain.png")
    result = main("evaluate.py", model, "deep.png", "plain.png", "--predictions", "p.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "p.csv", newline="") as file:
        deep, plain = (list(row.values())[3:] for row in csv.DictReader(file))
    assert [float(x) for x in deep] == pytest.approx([float(x) for x in plain], abs=1e-3)
