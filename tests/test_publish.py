"""Runs are sent to W&B after the training: to a fake of its server, and offline, read back by W&B."""

import csv
import io
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
from conftest import SHORT, assert_one_line_error, contents
from filelock import FileLock
from PIL import Image
from programs import run, start
from test_faults import impatient, left_behind, stopped_after_one_epoch
from test_logging_utils import read_table, records
from wandb_server import WandbServer

import data
from logging_utils import LOCK


@pytest.fixture(scope="session")
def resumed(once, tiny_dir) -> Path:
    """A run that was trained offline, stopped, resumed offline and moved, without W&B's files."""

    def fill(cwd: Path) -> None:
        flags = ("--data_dir", tiny_dir, *SHORT, "--log_images", 5, "--run_dir", "run", "--resume")
        env = {"WANDB_MODE": "offline"}
        assert run(stopped_after_one_epoch, *flags, cwd=cwd, **env).returncode == 130
        assert run("train.py", *flags, cwd=cwd, **env).returncode == 0
        shutil.rmtree(cwd / "run/wandb")
        (cwd / "run").rename(cwd / "moved")

    return once("resumed", fill) / "moved"


@pytest.fixture
def moved(resumed, tmp_path) -> Path:
    return Path(shutil.copytree(resumed, tmp_path / "else where" / "run"))


def assert_everything_arrived(server: WandbServer, run_dir: Path, tiny_dir: Path) -> None:
    """Each loss, metric, table, picture and model of a run is at the server, once."""
    images = data.load_split("mnist", tiny_dir, train=False)[2]
    with open(run_dir / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    history = [json.loads(line) for line in server.lines["wandb-history.jsonl"]]
    assert [(row["_step"], row["loss"]) for row in history] == [
        (int(row["step"]), pytest.approx(float(row["loss"]))) for row in metrics if row["loss"]
    ]
    epochs = [row for row in history if "epoch" in row]
    for row, ours in zip(epochs, (row for row in metrics if not row["loss"]), strict=True):
        for name in ("epoch", "acc", "test_loss", "wrong", "ece"):
            assert row[name] == pytest.approx(float(ours[name]))
    committed = [each for each in server.artifacts if each["committed"]]
    tables = [each for each in committed if each["artifactCollectionName"].endswith("-test_predictions")]
    tables = {
        each["historyStep"]: json.loads(each["files"]["test_predictions.table.json"]) for each in tables
    }
    pictures = {
        name: file for each in committed for name, file in each["files"].items() if name.endswith(".png")
    }
    for epoch, step in enumerate(sorted(tables), 1):
        with open(run_dir / f"predictions/epoch-{epoch:03d}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(tables[step]["data"]) == len(rows) == 100
        for (i, picture, guess, truth, *scores), row in zip(tables[step]["data"], rows):
            assert [i, guess, truth] == [int(row[name]) for name in ("id", "guess", "truth")]
            assert scores == [float(row[f"score_{k}"]) for k in range(10)]
            assert (picture is not None) == (i < 5 or guess != truth)
            if picture:
                pixels = Image.open(io.BytesIO(pictures[picture["path"]])).tobytes()
                assert pixels == images[i].numpy().tobytes()
    assert len(tables) == len(epochs) == 2
    (model,) = [each for each in committed if each["artifactTypeName"] == "model"]
    assert model["files"]["model.pt"] == (run_dir / "model.pt").read_bytes()
    assert json.loads(model["metadata"])["classes"] == list("0123456789")
    names = {each["name"] for each in server.asked("UpsertBucket")}
    assert names == {json.loads((run_dir / "config.json").read_text())["wandb_id"]}


def test_moved_run_is_published_once_however_often(moved, resumed, tiny_dir, tmp_path):
    arguments = ("publish.py", moved)
    with WandbServer() as server:
        first = run(*arguments, cwd=tmp_path, **server.env)
        assert first.returncode == 0 and first.stderr == "", first.stderr
        run_id = json.loads((resumed / "config.json").read_text())["wandb_id"]
        url = f"{server.url}/someone/table-quickstart/runs/{run_id}"
        assert first.stdout == f"epoch 1/2\nepoch 2/2\nwaiting for the uploads\ndone  {url}\n"
        assert_everything_arrived(server, moved, tiny_dir)
        config = json.loads(server.asked("UpsertBucket")[-1]["config"])
        assert config["lr"]["value"] == 0.005 and config["dataset"]["value"] == "mnist-format"
        before = server.lines["wandb-history.jsonl"].copy(), len(server.artifacts)
        again = run(*arguments, cwd=tmp_path, **server.env)
        assert again.returncode == 0 and again.stderr == "", again.stderr
        other = shutil.copytree(resumed, tmp_path / "another copy")
        assert run("publish.py", other, cwd=tmp_path, **server.env).returncode == 0
        assert (server.lines["wandb-history.jsonl"], len(server.artifacts)) == before
        # W&B has lost all but the losses; a variable of the user must not make it go on after them.
        server.artifacts.clear()
        config = json.loads((moved / "config.json").read_text())
        (moved / "config.json").write_text(json.dumps({**config, "wandb_lacks_part": True}))
        assert run(*arguments, cwd=tmp_path, **server.env, WANDB_RESUME="allow").returncode == 0
        assert_everything_arrived(server, moved, tiny_dir)


def test_epoch_whose_losses_alone_were_published_arrives_later(moved, resumed, tmp_path):
    for name in ("metrics.csv", "summary.json"):  # as if killed after the last step, in the evaluation
        lines = (moved / name).read_text().splitlines(keepends=True)
        text = "".join(lines[:-1]) if name == "metrics.csv" else "".join(lines).replace("finished", "was")
        (moved / name).write_text(text)
    with WandbServer() as server:
        for run_dir in (moved, resumed):
            run_dir = shutil.copytree(run_dir, tmp_path / "copies" / run_dir.name)
            assert run("publish.py", run_dir, cwd=tmp_path, **server.env).returncode == 0
    history = [json.loads(line) for line in server.lines["wandb-history.jsonl"]]
    assert [row["_step"] for row in history if "loss" in row] == list(range(1, 21))
    assert [row["test_predictions"]["nrows"] for row in history if "epoch" in row] == [100, 100]


@pytest.mark.parametrize("fault", ["falls silent in mid-run", "falls silent at the end"])
def test_run_that_wandb_got_in_part_is_completed(fault, tiny_dir, tmp_path):
    flags = ("--data_dir", tiny_dir, *SHORT, "--log_images", 5, "--run_dir", "run")
    with WandbServer() as server:
        server.fault = fault
        result = run(impatient, *flags, cwd=tmp_path, **server.env)
        problem = "W&B: no further records, because it has not ended within 4 s\n"
        assert result.returncode == 0 and result.stderr == problem and "publish.py run\n" in result.stdout
        server.fault, server.silent = None, False
        published = run("publish.py", "run", cwd=tmp_path, **server.env)
        assert published.returncode == 0 and published.stderr == "", published.stderr
        assert_everything_arrived(server, tmp_path / "run", tiny_dir)


@pytest.mark.parametrize(
    ("fault", "problem", "error"),
    [
        ("refuses the key", "offline, because of", "W&B got nothing"),
        ("refuses the files", "no further records, because of", "W&B did not get all of"),
    ],
)
def test_server_that_refuses_something_is_told_in_two_lines(fault, problem, error, moved, tmp_path):
    with WandbServer(fault) as server:
        result = run("publish.py", moved, cwd=tmp_path, **server.env)
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == 2, result.stderr
    assert lines[0].startswith(f"W&B: {problem}") and lines[1].startswith(f"error: {error}")


def test_sigterm_ends_it_in_a_line_and_leaves_no_temporary_files(moved, tmp_path):
    (tmp_path / "temporary").mkdir()
    with WandbServer("falls silent in mid-run") as server:
        env = {**server.env, "TMPDIR": str(tmp_path / "temporary")}
        process = start("publish.py", moved, cwd=tmp_path, **env)
        while process.stdout.readline() not in ("", "waiting for the uploads\n"):
            pass
        process.send_signal(signal.SIGTERM)
        error = process.communicate()[1]
    assert process.returncode == 143 and error == "stopped by SIGTERM: start the same command again\n"
    assert not left_behind(tmp_path / "temporary")


def test_offline_copy_is_read_back(moved, tiny_dir, tmp_path):
    result = run("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    folder = Path(result.stdout.splitlines()[-1].removeprefix("done  "))
    assert len(list(folder.glob("*.wandb"))) == 1  # so `wandb sync` takes it
    (start,) = records(moved)["run"]
    assert start["run_id"] == json.loads((moved / "config.json").read_text())["wandb_id"]
    history = [row["item"] for row in records(moved)["history"]]
    assert len([row for row in history if "loss" in row]) == 20
    assert [row["epoch"] for row in history if "epoch" in row] == [1, 2]
    table, entries = read_table(moved)
    images = data.load_split("mnist", tiny_dir, train=False)[2]
    pictured = [row for row in table["data"] if row[1]]
    assert len(table["data"]) == 100 and len(pictured) >= 5
    for row in pictured:
        if row[1]["path"] in entries and os.path.exists(entries[row[1]["path"]]):
            assert Image.open(entries[row[1]["path"]]).tobytes() == images[row[0]].numpy().tobytes()


def test_run_is_published_neither_while_it_trains_nor_before_its_first_epoch(main, moved, tmp_path):
    before = contents(moved)
    with FileLock(moved / LOCK):
        result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
    assert_one_line_error(result, "Another process or RunLogger is writing to", "Wait for it to end")
    assert contents(moved) == before and not list(moved.glob("wandb/*run-*"))
    (moved / "summary.json").unlink()
    result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
    assert_one_line_error(result, "no finished epoch")


def test_what_cannot_be_published_ends_in_a_line(main, moved, tmp_path):
    (tmp_path / "mine/files").mkdir(parents=True)  # this variable of W&B's moves the run's `dir`
    files = {"WANDB_X_FILES_DIR": str(tmp_path / "mine/files")}
    assert_one_line_error(main("publish.py", moved, cwd=tmp_path, **files), "wandb login")
    assert (tmp_path / "mine/files").exists()
    assert_one_line_error(main("publish.py", "nowhere", cwd=tmp_path), "nowhere")
    assert_one_line_error(
        main("publish.py", moved / "model.pt", cwd=tmp_path), "Name a directory that train.py"
    )
    assert_one_line_error(main("publish.py", moved, cwd=tmp_path, WANDB_MODE="disabled"), "WANDB_MODE")
    assert not list(moved.glob("wandb/*run-*"))
    for name, damage in {
        "config.json": "{}",
        "summary.json": '{"finished": 2}',
        "metrics.csv": "step,epoch\n1",
        "predictions/epoch-002.csv": "id,guess,truth\n1,x,",
        "pictures.pt": "no",
        "model.pt": "no",
    }.items():
        content = (moved / name).read_bytes()
        (moved / name).write_text(damage)
        result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
        assert_one_line_error(result, f"{name} is missing or damaged", "Copy it again")
        (moved / name).write_bytes(content)
    table = (moved / "predictions/epoch-002.csv").rename(tmp_path / "table.csv")
    result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
    assert_one_line_error(result, "damaged", "epoch-002.csv", "Copy it again")
    table.rename(moved / "predictions/epoch-002.csv")
    (moved / "notes.txt").symlink_to("/etc/hostname")
    assert_one_line_error(main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline"), "leads out")


def test_damage_that_w_and_b_would_get_is_found_before(main, moved, tmp_path):
    """It would go to W&B without a word, or stop the upload in the middle, each time again."""
    table, config = (
        (moved / "predictions/epoch-001.csv").read_text(),
        json.loads((moved / "config.json").read_text()),
    )
    flipped = {name: bytearray((moved / name).read_bytes()) for name in ("pictures.pt", "model.pt")}
    for content in flipped.values():
        content[len(content) // 2] ^= 1
    summary = json.loads((moved / "summary.json").read_text())
    (tmp_path / "private").write_text("mine")
    for name, damage in [
        *flipped.items(),
        ("summary.json", {**summary, "sha256": {**summary["sha256"], str(tmp_path / "private"): ""}}),
        ("predictions/epoch-001.csv", table[: table.index("\n", 2000) + 1]),
        ("predictions/epoch-001.csv", table.replace("\n7,", "\n7\n7,")),
        ("predictions/epoch-001.csv", table.replace("\n7,", "\n7,1")),
        ("config.json", {**config, "log_images": "x"}),
        ("config.json", {**config, "wandb_id": "a\x1b[2J"}),
        ("config.json", {**config, "wandb_id": "a/b"}),
        ("config.json", {**config, "log_images": 50}),
    ]:
        content = (moved / name).read_bytes()
        damage = json.dumps(damage) if isinstance(damage, dict) else damage
        (moved / name).write_bytes(damage.encode() if isinstance(damage, str) else damage)
        result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
        assert_one_line_error(result, "is missing or damaged", "Copy it again")
        (moved / name).write_bytes(content)
    for name in ("predictions/epoch-001.csv", "pictures.pt", "model.pt"):
        content = (moved / name).read_bytes()
        os.truncate(moved / name, 2**40)  # sparse: as large as a device that never ends
        result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
        assert_one_line_error(result, f"{name} is missing or damaged")
        (moved / name).write_bytes(content)
    with zipfile.ZipFile(moved / "pictures.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(2**20))  # a larger one would fill the memory
    result = main("publish.py", moved, cwd=tmp_path, WANDB_MODE="offline")
    assert_one_line_error(result, "pictures.pt is missing or damaged", "compressed")
    assert not list(moved.glob("wandb/*run-*"))
