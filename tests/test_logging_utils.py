import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import resource
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SHORT, assert_one_line_error
from PIL import Image
from programs import as_python, run
from wandb_server import WandbServer

import data
import logging_utils
import program
from logging_utils import (
    RunError,
    RunLogger,
    compute_metrics,
    create_run_dir,
    lock_run,
    prediction_rows,
    write_predictions,
)
from program import atomic_write, read_file, read_json
from wandb_run import WandbRun, shown_rows

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
LABELS = torch.tensor([0, 1])


def test_metrics_agree_with_a_calculation_by_hand():
    first = -math.log(math.exp(2) / (math.exp(2) + 2))
    second = -math.log(math.exp(1) / (1 + math.exp(1) + math.exp(3)))
    metrics = compute_metrics(LOGITS, LABELS)
    assert metrics["acc"] == 50 and metrics["wrong"] == 1
    assert metrics["test_loss"] == pytest.approx((first + second) / 2)


def test_predictions_file_restores_every_score_exactly(tmp_path):
    logits = torch.randn(200, 10) * 20
    rows = prediction_rows(logits, torch.arange(200) % 10)
    write_predictions(tmp_path / "predictions.csv", rows, num_classes=10)
    with open(tmp_path / "predictions.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", "guess", "truth", *(f"score_{k}" for k in range(10))]
    scores = torch.tensor([[float(value) for value in line[3:]] for line in lines])
    assert (scores == logits.softmax(1)).all()
    assert [int(line[0]) for line in lines] == list(range(200))
    assert [int(line[1]) for line in lines] == logits.argmax(1).tolist()


def test_predictions_of_many_classes_hold_the_ten_best(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 101, generator=generator), torch.arange(50)
    write_predictions(tmp_path / "predictions.csv", prediction_rows(logits, labels), num_classes=101)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = logits.softmax(1)
    for row, expected, label in zip(rows, scores, labels):
        order = expected.argsort(descending=True)[:10].tolist()
        assert int(row["guess"]) == order[0] and int(row["truth"]) == label
        assert [int(row[f"best_{rank}"]) for rank in range(1, 11)] == order
        written = [float(row[f"best_{rank}_score"]) for rank in range(1, 11)]
        assert torch.equal(
            torch.tensor([float(row["truth_score"]), *written]), expected[[int(label), *order]]
        )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("good")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "good" and os.listdir(tmp_path) == ["file"]


def test_runs_are_numbered_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(create_run_dir(None)) for _ in range(2)] == ["runs/001", "runs/002"]
    (tmp_path / "runs" / "my best").mkdir()
    (tmp_path / "runs" / "041").mkdir()
    assert str(create_run_dir(None)) == "runs/042"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "empty").mkdir()
    with RunLogger("empty", {}, ["no", "yes"]):
        with pytest.raises(RunError, match="Another process or RunLogger is writing to empty"):
            RunLogger("empty", {}, ["no", "yes"], resumed_epoch=0)
    with pytest.raises(RunError, match="empty holds a run"):
        RunLogger("empty", {}, ["no", "yes"])


def test_run_on_a_file_system_without_locks(monkeypatch, recwarn, tmp_path):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    number = errno.ENOLCK  # a server of NFS that gives none at the moment
    with pytest.raises(OSError, match=r"/\.lock"):
        lock_run(tmp_path)
    number = errno.ENOSYS
    (tmp_path / ".lock").write_text("123\nanother machine\n")
    with pytest.raises(RunError, match=r"or delete .*/\.lock if it was killed"):
        lock_run(tmp_path)
    (tmp_path / ".lock").unlink()
    lock_run(tmp_path).release()
    assert not recwarn.list


def test_file_is_on_the_disk_before_it_replaces_another(monkeypatch, tmp_path):
    events, replace, fsync = [], os.replace, os.fsync

    def recorded_fsync(descriptor):
        events.append(os.stat(descriptor).st_ino)
        fsync(descriptor)

    def recorded_replace(source, target):
        events.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with atomic_write(tmp_path / "file") as scratch:
        scratch.write_text("content")
    written = (tmp_path / "file").stat().st_ino
    assert events == [written, ("replace", written), tmp_path.stat().st_ino]


def test_special_and_endless_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "device", "huge", "."):
        with pytest.raises(OSError, match="is not a file of at most"):
            read_file(tmp_path / name)
    assert read_json(tmp_path / "pipe") == {}


def append_beyond_a_limit() -> int:
    with RunLogger("run", {}, ["no", "yes"]) as log:
        log.append_metrics([["first"]])
        size = os.path.getsize("run/metrics.csv") + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            log.append_metrics([["second"], ["third"]])
        except OSError as error:
            return int(error.filename != "run/metrics.csv")


def test_metrics_are_appended_whole_or_not_at_all(tmp_path):
    result = run(append_beyond_a_limit, cwd=tmp_path, WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/metrics.csv").read_text().splitlines()[1:] == ["first"]


def records(run_dir: Path) -> dict:
    """The records of a run's offline W&B log, by type."""
    (log,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    result = run(as_python, "-m", "wandb", "leet", "inspect", "--json", log.absolute(), cwd=run_dir)
    assert result.returncode == 0, result.stderr
    by_type = {}
    for record in map(json.loads, result.stdout.splitlines()):
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
    assert config.pop("wandb_id") == start["run_id"] and not config.pop("wandb_lacks_part")
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
    # The process that talks to W&B has not imported torch, which takes seconds and half a gigabyte.
    assert "torch" not in record["telemetry"][-1].get("imports_finish", {})
    assert any(m.get("name") == "acc" and m.get("step_metric") == "epoch" for m in record["metric"])


def test_table_has_pictures_of_the_first_and_of_wrong_images_and_they_are_not_black(finished, small_dir):
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


def test_online_run_ends_well(tiny_dir, tmp_path):
    """All that a run records arrives at W&B's server, and no error is passed over on the way."""
    images = data.load_split("mnist", tiny_dir, train=False)[2]
    with WandbServer() as server:
        flags = ("--data_dir", tiny_dir, *SHORT, "--log_images", 5, "--run_dir", "run")
        result = run("train.py", *flags, cwd=tmp_path, **server.env)
    assert result.returncode == 0 and result.stderr == ""
    run_id = json.loads((tmp_path / "run/config.json").read_text())["wandb_id"]
    assert f"W&B   {server.url}/someone/table-quickstart/runs/{run_id}\n" in result.stdout

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
                picture = Image.open(io.BytesIO(artifact["files"][row[1]["path"]]))
                assert picture.tobytes() == images[row[0]].numpy().tobytes()
    assert len(tables) == len(epochs) == 2
    (model,) = [each for each in server.artifacts if each["artifactTypeName"] == "model"]
    assert model["files"]["model.pt"] == (tmp_path / "run/model.pt").read_bytes()
    assert [each["alias"] for each in model["aliases"]] == ["latest"]


def test_wandb_may_lack_part_of_an_online_run_until_its_end(monkeypatch, tmp_path):
    path = tmp_path / "run/config.json"
    with WandbServer() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        with RunLogger(path.parent, {}, ["no", "yes"]) as log:
            assert read_json(path)["wandb_lacks_part"]  # it can be killed before the uploads
        assert log.wandb.mode == "online" and not read_json(path)["wandb_lacks_part"]


def test_wandb_mode_wins_and_there_is_never_a_prompt(tiny_dir, tmp_path):
    arguments = ["--data_dir", tiny_dir, "--epochs", 1, "--img_count", 10]
    result = run("train.py", *arguments, cwd=tmp_path, WANDB_MODE="disabled", WANDB_API_KEY="0" * 40)
    assert result.returncode == 0 and "disabled by WANDB_MODE" in result.stdout
    assert not list((tmp_path / "runs" / "001").glob("wandb/*run*"))
    assert not list((tmp_path / "runs" / "001").rglob("*.png"))  # no picture is made in vain
    result = run("train.py", *arguments, "--log_images", "all", cwd=tmp_path, WANDB_MODE="online")
    assert (
        result.returncode == 0 and "no API key" in result.stderr and "publish.py runs/002" in result.stdout
    )
    table, _ = read_table(tmp_path / "runs" / "002")
    assert len(table["data"]) == 10 and all(row[1] for row in table["data"])


def test_name_that_wandb_refuses_is_one_line(main, tiny_dir, tmp_path):
    env = {"WANDB_PROJECT": "a/b%c", "WANDB_MODE": "offline"}
    result = main("train.py", "--data_dir", tiny_dir, "--epochs", 1, cwd=tmp_path, **env)
    assert_one_line_error(
        result, "W&B cannot start, because of UsageError: Invalid project name", "Fix WANDB_*"
    )


def test_empty_variables_of_wandb_are_as_if_unset(tmp_path, monkeypatch):
    names = "MODE RUN_ID TAGS RESUME CONSOLE BASE_URL INIT_TIMEOUT DATA_DIR PROJECT"
    empty = {f"WANDB_{name}": "" for name in names.split()}
    for name, value in empty.items():
        monkeypatch.setenv(name, value)
    with RunLogger(tmp_path / "run", {}, ["a", "b", "c"]) as log:
        log.log_epoch(1, 1, LOGITS, LABELS)
    assert log.wandb.mode == "offline" and not log.wandb.gave_up
    assert {name: os.environ.get(name) for name in empty} == empty


def test_table_has_fewer_rows_above_sixteen_classes():
    for classes, expected in ((10, 10_000), (16, 10_000), (17, 9_523), (100, 1_923)):
        rows = [[i, 0, 0, *[0.0] * classes] for i in range(10_001)]
        assert len(shown_rows({}, rows)) == expected  # at most 200,000 cells, the picture's included
        assert len(shown_rows({"img_count": 10_001}, rows)) == 10_001


def log_both_tables() -> int:
    """Log a table of ours, and in another run the one that W&B makes of the same rows."""
    import wandb

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 12, 10), dtype=torch.uint8, generator=generator)
    logits, labels = torch.randn(40, 3, generator=generator), torch.arange(40) % 3
    config, classes = {"img_count": 30, "log_images": 7}, os.environ["CLASSES"].split()
    with RunLogger("run", config, classes, images) as log:
        log.log_epoch(1, 1, logits, labels)
    os.environ["WANDB_DATA_DIR"] = os.path.abspath("theirs")
    with wandb.init(project="theirs", dir="theirs", settings=wandb.Settings(silent=True)) as theirs:
        names, rows = [int(name) if name.isdecimal() else name for name in classes], []
        for i, guess, truth, *scores in prediction_rows(logits, labels)[:30]:
            pictured = i < 7 or guess != truth
            picture = wandb.Image(images[i, 0].numpy()) if pictured else None
            scores = [float(f"{score:.9g}") for score in scores]  # as the CSV file has them
            rows.append([i, picture, names[guess], names[truth], *scores])
        columns = ["id", "image", "guess", "truth", "score_0", "score_1", "score_2"]
        theirs.log({"test_predictions": wandb.Table(columns=columns, data=rows)})
    return 0


@pytest.mark.parametrize("classes", ["0 1 2", "ant bee cow"])
def test_table_is_what_wandb_makes_of_the_same_rows(classes, tmp_path):
    (tmp_path / "theirs").mkdir()
    result = run(log_both_tables, cwd=tmp_path, WANDB_MODE="offline", CLASSES=classes)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    ours, theirs = (read_table(tmp_path / folder)[0] for folder in ("run", "theirs"))
    for row in (*ours["data"], *theirs["data"]):
        if row[1]:
            row[1].pop("path")
    assert len(ours["data"]) == 30 and ours == theirs


def log_many_classes() -> int:
    """An epoch of 120 classes, of which most guesses are wrong."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(1500, 1, 8, 8, dtype=torch.uint8)
    names = [f"kind {k}" for k in range(120)]
    with RunLogger("run", {"log_images": 10}, names, images) as log:
        log.log_epoch(1, 1, torch.randn(1500, 120, generator=generator), torch.arange(1500) % 120)
    return 0


def test_table_of_many_classes_stays_small(tmp_path):
    result = run(log_many_classes, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    table, _ = read_table(tmp_path / "run")
    columns = table["columns"]
    assert columns[:7] == ["id", "image", "guess", "truth", "truth_score", "best_1", "best_1_score"]
    assert len(table["data"]) == 1500
    with open(tmp_path / "run/predictions/epoch-001.csv", newline="") as file:
        for line, row in zip(csv.DictReader(file), table["data"]):
            cells = dict(zip(columns, row))
            assert cells["truth"] == f"kind {line['truth']}" and cells["best_2"] == f"kind {line['best_2']}"
            assert cells["best_2_score"] == float(line["best_2_score"])
    pictured = [row[0] for row in table["data"] if row[1]]
    wrong = [row[0] for row in table["data"] if row[2] != row[3]]
    assert pictured == sorted({*range(10), *wrong[:1000]})
    files = records(tmp_path / "run")["artifact"]
    names = {entry["path"] for artifact in files for entry in artifact["manifest"]["contents"]}
    assert not any("confusion" in name for name in names)


@pytest.mark.parametrize("classes", [np.array(["ant", "bee", "cow"]), [*"ab", 3]], ids=["numpy", "mixed"])
def test_wandb_takes_class_names_of_any_kind(classes, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with RunLogger(tmp_path / "run", {}, classes) as log:
        log.log_epoch(1, 1, LOGITS, LABELS)
    assert not log.wandb.gave_up
    assert read_json(tmp_path / "run/config.json")["classes"] == [str(name) for name in classes]


def test_a_line_on_wandb_is_not_lost_during_an_export(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(WandbRun, "log_epoch", lambda *_: 1 / 0)
    with RunLogger(tmp_path / "run", {}, ["a", "b", "c"]) as log:
        with contextlib.redirect_stderr(io.StringIO()):  # as export_model does
            log.log_epoch(1, 1, LOGITS, LABELS)
            log.wandb.jobs.put(None)
            log.wandb.thread.join()
    line = "W&B: no further records, because of ZeroDivisionError: division by zero\n"
    assert capsys.readouterr().err == line and log.wandb.lacks_part


def test_run_can_be_resumed_after_its_end_was_interrupted(monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(WandbRun, "finish", interrupt)
    log = RunLogger(tmp_path / "run", {}, ["a", "b", "c"])  # kept, as a notebook does
    with pytest.raises(KeyboardInterrupt), log:
        pass
    lock_run(tmp_path / "run").release()  # it does not say "Another process or RunLogger is writing"


def test_last_losses_are_written_if_the_loop_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("run", "gone"):
        with pytest.raises(ZeroDivisionError), RunLogger(tmp_path / name, {}, ["a", "b", "c"]) as log:
            log.log_step(1, 1, 0.5)
            if name == "gone":  # what fails at the end does not hide why the loop ended
                (tmp_path / name / "metrics.csv").unlink()
            raise ZeroDivisionError
    assert (tmp_path / "run/metrics.csv").read_text().splitlines()[1:] == ["1,1,0.5,,,,"]


def train_in_a_loop_of_its_own() -> int:
    """The README's loop with the logger's three lines, on the data of sys.argv[1]."""
    images, labels = data.load_split("mnist", sys.argv[1], train=False)[2:]
    pixels = images.float() / 255
    weights = torch.zeros(28 * 28, 10, requires_grad=True)

    def predict(images):
        return images.flatten(1) @ weights

    def train_step(images, labels):
        loss = torch.nn.functional.cross_entropy(predict(images), labels)
        loss.backward()
        with torch.no_grad():
            weights.sub_(0.1 * weights.grad)
        weights.grad = None
        return loss

    names = {
        "settings": {"lr": 0.1},
        "classes": list("0123456789"),
        "test_images": pixels,
        "test_labels": labels,
        "train_batches": [(pixels[:250], labels[:250]), (pixels[250:], labels[250:])],
        "num_epochs": 2,
        "step": 0,
        "predict": predict,
        "train_step": train_step,
    }
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"\n(    from logging_utils import RunLogger\n.*?)\n\n`", readme, re.DOTALL)
    exec(textwrap.dedent(block), names)
    return 0


def test_loop_of_your_own_gets_files_tables_and_a_page(small_dir, tmp_path):
    result = run(train_in_a_loop_of_its_own, small_dir, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == ["epoch 1", "epoch 2"]
    with open(tmp_path / "runs/mine/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == list("122344") and [row["epoch"] for row in rows] == list(
        "111222"
    )
    assert float(rows[0]["loss"]) == pytest.approx(math.log(10)) and rows[2]["acc"]
    table, entries = read_table(tmp_path / "runs/mine")
    images = data.load_split("mnist", small_dir, train=False)[2]
    pictured = [row for row in table["data"] if row[1]]
    assert len(table["data"]) == 500 and len(pictured) > 300
    for row in pictured[:10]:  # the floats became the bytes they were
        picture = Image.open(entries[row[1]["path"]])
        assert picture.tobytes() == images[row[0]].numpy().tobytes()
    flags = ("--dataset", "mnist", "--data_dir", small_dir)
    page = run("compare.py", "runs/mine@1", "runs/mine", *flags, cwd=tmp_path)
    assert page.returncode == 0 and (tmp_path / "compare.html").stat().st_size > 1e5, page.stderr


def test_metric_that_is_added_appears_everywhere(monkeypatch, capsys, tmp_path):
    def with_top2(logits, labels):
        best = logits.topk(2).indices
        return {
            **compute_metrics(logits, labels),
            "top2": 100 * (best == labels[:, None]).any(1).float().mean().item(),
        }

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(logging_utils, "compute_metrics", with_top2)
    with RunLogger("run", {}, ["a", "b", "c"]) as log:
        log.log_step(1, 1, torch.tensor(0.5))
        log.log_epoch(1, 1, LOGITS, LABELS, seconds=1.0)
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert rows[0]["top2"] == "" and rows[1]["top2"] == "100"
    assert json.loads((tmp_path / "run/summary.json").read_text())["top2"] == 100
    assert "top2 100" in capsys.readouterr().out
    assert [
        row["item"]["top2"] for row in records(tmp_path / "run")["history"] if "top2" in row["item"]
    ] == [100]


def test_resumed_run_has_a_metric_that_was_added_since(monkeypatch, tmp_path):
    def with_top2(logits, labels):
        return {"top2": torch.tensor(100.0), **compute_metrics(logits, labels)}  # first, and a tensor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for resumed_epoch in (None, 1):
        with RunLogger("run", {}, ["a", "b", "c"], resumed_epoch=resumed_epoch) as log:
            log.log_epoch(2 if resumed_epoch else 1, 1, LOGITS, LABELS)
        monkeypatch.setattr(logging_utils, "compute_metrics", with_top2)
    first, second = csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines())
    assert first["top2"] == "" and second["top2"] == "100"
    assert first["acc"] == second["acc"] == "50" and first["wrong"] == "1"
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["classes"] == ["a", "b", "c"]


def test_scores_of_logits_in_half_precision_are_exact(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logits = (7 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))).bfloat16()
    with RunLogger("run", {}, list("0123456789")) as log:
        log.log_epoch(1, 1, logits, torch.arange(50) % 10)
    with open("run/predictions/epoch-001.csv", newline="") as file:
        scores = [[float(row[f"score_{k}"]) for k in range(10)] for row in csv.DictReader(file)]
    torch.testing.assert_close(torch.tensor(scores), logits.float().softmax(1), rtol=1e-6, atol=1e-9)


def test_values_of_a_loop_may_be_of_numpy_or_python(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logits, labels = 9 * np.eye(3)[[0, 1, 1]], np.array([0, 1, 2], dtype=np.int32)
    with RunLogger(tmp_path / "run", {}, np.array(["a", "b", "c"]), np.zeros((3, 1, 4, 4))) as log:
        for step, loss in enumerate([0.5, np.float32(0.25), torch.tensor([0.125], requires_grad=True)]):
            log.log_step(0, step, loss)
        log.log_epoch(0, 3, logits, labels)
        log.log_epoch(torch.tensor(1), torch.tensor(3), logits, labels.tolist())
        with pytest.raises(TypeError, match="float"):  # it would replace the predictions of epoch 1
            log.log_epoch(1.5, 3, logits, labels)
        log.log_step(torch.tensor(2), np.int64(4), 0.0625)
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    losses = [row.split(",")[2] for row in rows[1:]]
    assert losses == ["0.5", "0.25", "0.125", "", "", "0.0625"]
    assert [row.split(",")[:2] for row in rows[-2:]] == [["3", "1"], ["4", "2"]]
    assert log.summary["wrong"] == 1
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    rows = prediction_rows(tensors[0].float(), tensors[1])  # what the recipe for the tables alone calls
    assert rows == prediction_rows(logits, labels) == prediction_rows(tensors[0].bfloat16(), tensors[1])


def test_logits_that_do_not_match_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for classes, logits in ((["a", "b"], LOGITS), (["a", "b", "c"], LOGITS[:1]), (list("abcd"), LOGITS)):
        with RunLogger(None, {}, classes, images) as log:
            with pytest.raises(ValueError, match="do not match"):
                log.log_epoch(1, 1, logits, LABELS[: len(logits)])
    one_hot = torch.nn.functional.one_hot(LABELS, LOGITS.shape[1])
    for labels in (LABELS[:1], LABELS[:, None], one_hot, LABELS + LOGITS.shape[1], LABELS - 9):
        with pytest.raises(ValueError, match=r"do not match: give \(N, K\) and \(N,\), each label from 0"):
            prediction_rows(LOGITS, labels)
    with pytest.raises(ValueError, match="do not match"):
        prediction_rows(LOGITS[:, 0], LABELS)
    with pytest.raises(ValueError, match="these are probabilities. Pass logits, or the logarithm"):
        prediction_rows(LOGITS.softmax(1).bfloat16(), LABELS)
    assert prediction_rows(LOGITS.log_softmax(1), LABELS)


def test_pictures_of_every_type_have_the_same_range(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    eye = np.eye(4)[None, None]
    for images in (eye, eye > 0, (255 * eye).astype(np.uint8), (255 * eye).astype(np.uint16)):
        with RunLogger(None, {}, ["a", "b", "c"], images) as log:
            assert log.images.unique().tolist() == [0, 255]


@pytest.mark.parametrize("wrong", ["images", "WANDB_MODE"])
def test_refused_logger_leaves_nothing_behind(wrong, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    images, error, words = torch.zeros(4, 1, 5, 5), ValueError, "images must be uint8"
    if wrong == "images":
        images = images - 0.42  # normalized
    else:
        error, words = RunError, "W&B .*mode Input should be .*'disabled'.* Fix WANDB_"
        monkeypatch.setenv("WANDB_MODE", "onlin")
        before["WANDB_MODE"] = "onlin"
    with pytest.raises(error, match=words):
        RunLogger("mine", {}, ["a", "b"], images)
    assert os.listdir(tmp_path) == [] and dict(os.environ) == before


def test_environment_is_described_without_torchvision(monkeypatch):
    monkeypatch.setattr(program, "distributions", lambda **_: [])
    described = program.describe_environment()
    assert described["torch"] == torch.__version__ and "torchvision" not in described
