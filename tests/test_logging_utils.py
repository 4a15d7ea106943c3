import csv
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SHORT, assert_one_line_error
from PIL import Image
from programs import environment, run
from wandb_server import WandbServer

import data
from logging_utils import (
    RunError,
    append,
    create_run_dir,
    measure,
    prediction_rows,
    replacing,
    write_predictions,
)

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
LABELS = torch.tensor([0, 1])


def test_metrics_agree_with_a_calculation_by_hand():
    first = -math.log(math.exp(2) / (math.exp(2) + 2))
    second = -math.log(math.exp(1) / (1 + math.exp(1) + math.exp(3)))
    metrics = measure(LOGITS, LABELS)
    assert metrics["acc"] == 50 and metrics["wrong"] == 1
    assert metrics["test_loss"] == pytest.approx((first + second) / 2)


def test_predictions_file_restores_every_score_exactly(tmp_path):
    logits = torch.randn(200, 10) * 20
    rows = prediction_rows(logits, torch.arange(200) % 10)
    write_predictions(tmp_path / "predictions.csv", rows)
    with open(tmp_path / "predictions.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", "guess", "truth", *(f"score_{k}" for k in range(10))]
    scores = torch.tensor([[float(value) for value in line[3:]] for line in lines])
    assert (scores == logits.softmax(1)).all()
    assert [int(line[0]) for line in lines] == list(range(200))
    assert [int(line[1]) for line in lines] == logits.argmax(1).tolist()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("good")
    with pytest.raises(KeyboardInterrupt), replacing(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "good" and os.listdir(tmp_path) == ["file"]


def test_runs_are_numbered_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(create_run_dir(None)) for _ in range(2)] == ["runs/001", "runs/002"]
    (tmp_path / "runs" / "my best").mkdir()
    (tmp_path / "runs" / "041").mkdir()
    assert str(create_run_dir(None)) == "runs/042"
    (tmp_path / "empty").mkdir()
    create_run_dir("empty")
    (tmp_path / "empty" / "notes").touch()
    with pytest.raises(RunError, match="in use"):
        create_run_dir("empty")


def append_beyond_a_limit() -> int:
    append(Path("file"), "first\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    try:
        append(Path("file"), "second\n")
    except OSError as error:
        sys.exit(error.filename)


def test_text_is_appended_whole_or_not_at_all(tmp_path):
    result = run(append_beyond_a_limit, cwd=tmp_path)
    assert result.stderr == "file\n" and (tmp_path / "file").read_text() == "first\n"


def records(run_dir: Path) -> dict:
    """The records of a run's offline W&B log, by type."""
    (log,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout
    by_type = {}
    for record in map(json.loads, lines.splitlines()):
        by_type.setdefault(record["type"], []).append(record[record["type"]])
    return by_type


def read_table(run_dir: Path) -> tuple[dict, dict]:
    """The last logged table of predictions, and the files of its pictures by their paths in it."""
    for artifact in reversed(records(run_dir)["artifact"]):
        entries = {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}
        if "test_predictions.table.json" in entries:
            return json.loads(Path(entries["test_predictions.table.json"]).read_text()), entries
    raise AssertionError("no table was logged")


def test_offline_wandb_run_holds_everything(finished):
    record = records(finished)
    (start,) = record["run"]
    config = json.loads((finished / "config.json").read_text())
    assert config.pop("wandb_id") is None  # offline
    logged = start["config"]["update"]
    assert start["project"] == "table-quickstart"
    assert {name: logged[name] for name in config} == config
    tutorial = {"epochs", "batch_size", "lr", "l1_size", "l2_size", "conv_kernel", "img_count"}
    assert tutorial <= set(config)

    with open(finished / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    history = [row["item"] for row in record["history"]]
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses == pytest.approx([float(row["loss"]) for row in metrics if row["loss"]])
    epochs = [row for row in history if "acc" in row]
    assert [row["epoch"] for row in epochs] == [1, 2]
    for row, ours in zip(epochs, (row for row in metrics if row["acc"])):
        assert row["acc"] == pytest.approx(float(ours["acc"]))
        assert row["test_loss"] == pytest.approx(float(ours["test_loss"]))
        assert row["test_predictions.nrows"] == 500 and row["test_predictions.ncols"] == 14
        assert row["dataset"] == config["dataset"] == "mnist-format"

    artifacts = record["artifact"]
    assert [artifact["type"] for artifact in artifacts] == ["run_table"] * 4 + ["model"]
    assert "model.pt" in [entry["path"] for entry in artifacts[-1]["manifest"]["contents"]]
    assert artifacts[-1]["aliases"] == ["latest"]
    assert json.loads(artifacts[-1]["metadata"])["classes"] == list("0123456789")
    assert all(row["confusion_table.nrows"] == 100 for row in epochs)
    assert any(m.get("name") == "acc" and m.get("step_metric") == "epoch" for m in record["metric"])


def test_table_has_pictures_of_watched_and_wrong_images_and_they_are_not_black(finished, small_dir):
    images = data.load_split("mnist", small_dir, train=False)[2]
    table, entries = read_table(finished)
    assert table["columns"][:4] == ["id", "image", "guess", "truth"] and len(table["data"]) == 500
    pictured = {row[0] for row in table["data"] if row[1]}
    wrong = {row[0] for row in table["data"] if row[2] != row[3]}
    assert pictured == wrong | set(range(20)) and len(wrong) > 0
    for row in table["data"]:
        if row[1]:
            assert finished / "wandb" in Path(entries[row[1]["path"]]).parents
            picture = Image.open(entries[row[1]["path"]])
            assert picture.tobytes() == images[row[0]].numpy().tobytes()


def test_online_run_ends_well(small_dir, tmp_path):
    """All that a run records arrives at W&B's server, and nothing is forgiven on the way."""
    with WandbServer() as server:
        flags = ("--data_dir", small_dir, *SHORT, "--log_images", 5, "--run_dir", "run")
        result = run("train.py", *flags, cwd=tmp_path, **server.env)
    assert result.returncode == 0 and result.stderr == ""
    run_id = json.loads((tmp_path / "run/config.json").read_text())["wandb_id"]
    assert f"W&B          {server.url}/someone/table-quickstart/runs/{run_id}\n" in result.stdout

    with open(tmp_path / "run/metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    history = [json.loads(line) for line in server.lines["wandb-history.jsonl"]]
    losses = {row["_step"]: row["loss"] for row in history}
    assert losses == pytest.approx({int(row["step"]): float(row["loss"]) for row in metrics if row["loss"]})
    epochs = [row for row in history if "acc" in row]
    for row, ours in zip(epochs, (row for row in metrics if row["acc"]), strict=True):
        assert row["epoch"] == int(ours["epoch"]) and row["acc"] == pytest.approx(float(ours["acc"]))

    assert all(artifact["committed"] for artifact in server.artifacts) and len(server.artifacts) == 5
    name = f"run-{run_id}-test_predictions"
    tables = [each for each in server.artifacts if each["artifactCollectionName"] == name]
    for epoch, artifact in enumerate(sorted(tables, key=lambda each: each["historyStep"]), 1):
        table = json.loads(artifact["files"]["test_predictions.table.json"])
        with open(tmp_path / f"run/predictions/epoch-00{epoch}.csv", newline="") as file:
            expected = [(int(row["id"]), int(row["guess"])) for row in csv.DictReader(file)]
        assert [(row[0], row[2]) for row in table["data"]] == expected
        for row in table["data"]:
            assert (row[1] is not None) == (row[0] < 5 or row[2] != row[3])
            if row[1]:
                picture = (tmp_path / f"run/wandb/pictures/{row[0]}.png").read_bytes()
                assert artifact["files"][row[1]["path"]] == picture
    assert len(tables) == len(epochs) == 2
    (model,) = [each for each in server.artifacts if each["artifactTypeName"] == "model"]
    assert model["files"]["model.pt"] == (tmp_path / "run/model.pt").read_bytes()
    assert [each["alias"] for each in model["aliases"]] == ["latest"]


def test_wandb_mode_wins_and_nothing_is_ever_asked(main, small_dir, tmp_path):
    arguments = ["--data_dir", small_dir, "--epochs", 1, "--img_count", 10]
    result = run("train.py", *arguments, cwd=tmp_path, WANDB_MODE="disabled", WANDB_API_KEY="0" * 40)
    assert result.returncode == 0 and "disabled by WANDB_MODE" in result.stdout
    assert not list((tmp_path / "runs" / "001").glob("wandb/*run*"))
    assert not list((tmp_path / "runs" / "001").rglob("*.png"))  # nor is anything drawn for nobody
    result = run("train.py", *arguments, "--log_images", "all", cwd=tmp_path, WANDB_MODE="online")
    assert result.returncode == 0 and "no API key" in result.stderr and "wandb sync" in result.stdout
    table, _ = read_table(tmp_path / "runs" / "002")
    assert len(table["data"]) == 10 and all(row[1] for row in table["data"])
    assert_one_line_error(main("train.py", *arguments, cwd=tmp_path, WANDB_MODE="onlin"), "WANDB_MODE")
