"""Send a run directory to W&B, wherever it was trained and wherever it is now.

    python publish.py runs/001

All that W&B gets is in the directory: settings, losses, metrics, tables with their pictures, the model. It
becomes one run on W&B, always the same one: doing it again adds only what is not there yet.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

try:
    from logging_utils import RunError, holds_run, lock_run
    from program import MAX_FILE, exit_status, read_file, read_pictures, stop_signals, write_json
    from wandb_run import WandbRun, pictured_ids, read_table, reason
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    needed = "logging_utils.py, wandb_run.py, program.py, and the packages of requirements.txt"
    print(f"error: {error.name} is missing. publish.py needs {needed}.", file=sys.stderr)
    sys.exit(2)

RUN_ID = r"[^:;,#?/'\0-\x1f\x7f-\x9f]{1,128}"  # W&B refuses others, but for control characters
WAITS = 3600, 3600  # seconds to wait for W&B at most, in an epoch and at the end


def publish(run_dir: Path) -> None:
    """Lock a run directory, and send it to W&B. Raises RunError as `send` does, or if it cannot be sent."""
    if run_dir.is_file() or not holds_run(run_dir):
        raise RunError(f"{run_dir} holds no run. Name a directory that train.py wrote.")
    if not (run_dir / "summary.json").exists():
        raise RunError(f"{run_dir} has no finished epoch. Publish it after the first one.")
    lock = lock_run(run_dir)
    try:
        with stop_signals("start the same command again", at_once=True):
            send(run_dir)
    finally:
        lock.release()


def send(run_dir: Path) -> None:
    """Send a run to W&B. Raises RunError if it is damaged, or if W&B does not get all of it."""
    path = run_dir / "config.json"
    try:
        config = json.loads(read_file(path))
        classes = [str(name) for name in config["classes"]]
        run_id, replace = config.pop("wandb_id", None), config.pop("wandb_lacks_part", False)
        if run_id is not None and not re.fullmatch(RUN_ID, run_id):
            raise ValueError(f"wandb_id is {run_id!r:.100}")
        path = run_dir / "summary.json"
        summary = json.loads(read_file(path))
        models = dict(summary["sha256"]) if "finished" in summary else {}
        path = run_dir / "metrics.csv"
        rows = read_metrics(path)
        if rows[-1][2] is not None:  # a loss that may be the last one of its epoch
            rows.pop()  # W&B takes a step once, and that of the epoch's metrics is the same
        files = {epoch: f"predictions/epoch-{epoch:03d}.csv" for _, epoch, loss, _ in rows if loss is None}
        path = run_dir / "pictures.pt"
        pictures = read_pictures(path) if path.exists() else None
        # W&B's process would notice damage only after the uploads before it, and torch none at all.
        counts = set()
        for path in [run_dir / name for name in files.values()]:
            counts.add(check_table(path, config, len(classes), pictures))
            if len(counts) > 1:
                raise ValueError("another epoch has more or fewer rows")
        metadata = {}
        for path in [run_dir / name for name in models]:
            metadata = read_metadata(path, models[path.name]) | metadata
    except Exception as error:  # damage of any kind
        raise RunError(f"{path} is missing or damaged ({reason(error)}). Copy it again.") from error
    run = WandbRun(run_dir, config, classes, pictures, run_id, replace, WAITS)
    try:
        if run.mode == "disabled" or (run.mode == "offline" and os.environ.get("WANDB_MODE") != "offline"):
            run.finish(1)
            if run.mode == "offline":
                shutil.rmtree(run.dir, ignore_errors=True)
            cure = "Run wandb login or wandb online, see WANDB_MODE, or try again later."
            raise RunError(f"W&B got nothing. {cure}")

        # If this is cut short, the next time begins again.
        write_json(run_dir / "config.json", {**config, "wandb_id": run.id, "wandb_lacks_part": True})
        for step, epoch, loss, metrics in rows:
            if loss is not None:
                run.submit("log_losses", [step], [loss])
            else:
                print(f"epoch {epoch}/{rows[-1][1]}", flush=True)
                record = {"epoch": epoch, "dataset": config.get("dataset", "unknown"), **metrics}
                run.submit("log_epoch", step, record, files[epoch])
        if models:
            run.submit("log_model", [*models], metadata)
        print("waiting for the uploads", flush=True)
        run.finish(0)
    finally:  # of an error or a signal, too
        run.kill()
    if run.gave_up:
        raise RunError(f"W&B did not get all of {run_dir}. Start the same command again.")
    write_json(run_dir / "config.json", {**config, "wandb_id": run.id, "wandb_lacks_part": False})
    print(f"done  {run.dir if run.mode == 'offline' else run.url}")


def read_metrics(path: Path) -> list[tuple]:
    """The rows of metrics.csv: step, epoch, loss or None, and a dict of the metrics of an epoch."""
    rows = []
    for row in csv.DictReader(io.StringIO(read_file(path).decode(), newline="")):
        step, epoch, loss = int(row.pop("step")), int(row.pop("epoch")), row.pop("loss")
        metrics = {name: float(value) for name, value in row.items() if value}
        metrics = {name: int(value) if value.is_integer() else value for name, value in metrics.items()}
        rows.append((step, epoch, float(loss) if loss else None, metrics))
    return rows


def check_table(path: Path, config: dict, num_classes: int, pictures: dict | None) -> int:
    """The rows of a predictions file. Raises an error if it is damaged, or pictures of it are missing."""
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"it has more than {MAX_FILE:,} bytes")
    columns, rows = read_table(path)
    if [(row[0], len(row)) for row in rows] != [(i, len(columns)) for i in range(len(rows))]:
        raise ValueError("it lacks values")
    if not all(0 <= label < num_classes for row in rows for label in row[1:3]):
        raise ValueError("it has other classes than config.json")
    needed = pictured_ids(config, rows)
    if pictures is not None and (lacking := {*needed} - pictures.keys()):
        raise ValueError(f"pictures.pt lacks the picture of id {min(lacking)}")
    return len(rows)


def read_metadata(path: Path, sha256: str) -> dict:
    """What an exported model says about itself. Raises an error if its SHA-256 is another one."""
    content = read_file(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("its SHA-256 is not the one in summary.json")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        name = next(name for name in file.namelist() if name.endswith("extra/metadata.json"))
        return json.loads(file.read(name))


def main() -> int:
    summary = (__doc__ or "").partition("\n")[0]  # python -OO leaves it out
    parser = argparse.ArgumentParser(description=summary, usage="publish.py RUN_DIR")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory that train.py wrote")
    return exit_status(lambda: publish(parser.parse_args().run_dir), RunError)


if __name__ == "__main__":
    sys.exit(main())
