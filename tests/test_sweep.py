import json
import signal
import subprocess
import sys
import warnings

import pytest
import yaml
from conftest import ROOT, assert_one_line_error, environment, run

import train

with warnings.catch_warnings():  # of its dependencies, at import
    warnings.simplefilter("ignore")
    import sweeps

SMALL = """
method: bayes
metric: {name: acc, goal: maximize}
parameters:
  val_size: {value: 300}
  epochs: {value: 2}
  lr: {distribution: log_uniform_values, min: 0.0005, max: 0.02}
  batch_size: {values: [64, 128]}
"""


def test_sweep_is_one_that_wandb_takes_and_train_understands(small_dir, tmp_path):
    sweep = yaml.safe_load((ROOT / "sweep.yaml").read_text())
    assert list(sweeps.schema_violations_from_proposed_config(sweep)) == []
    assert sweep["method"] == "bayes" and sweep["metric"] == {"name": "acc", "goal": "maximize"}
    assert sweep["parameters"]["val_size"]["value"] > 0
    for parameter, choice in sweep["parameters"].items():
        for value in choice.get("values", [choice.get("value"), choice.get("min"), choice.get("max")]):
            if value is not None:
                train.Config(**{parameter: value})
    # The small data have less to hold out, and one epoch is enough to see.
    sweep["parameters"] |= {"val_size": {"value": 300}, "epochs": {"value": 1}}
    chosen = sweeps.next_run(sweep, []).config
    agents = [f"--{name}={chosen[name]['value']}" for name in sorted(chosen)]  # its ${args}
    result = run(sweep["program"], *agents, "--data_dir", small_dir, cwd=tmp_path, WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "runs/001/config.json").read_text())
    assert all(config[name] == pytest.approx(entry["value"]) for name, entry in chosen.items())


def test_local_sweep_goes_on_after_an_interruption_and_ranks_its_runs(small_dir, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    flags = ["--config", "small.yaml", "--count", "3", "--", "--data_dir", str(small_dir)]
    command = [sys.executable, str(ROOT / "sweep.py"), *flags]
    env = environment(WANDB_MODE="disabled")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)
    while not process.stdout.readline().startswith("002  started"):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and error == "stopped by SIGINT: the same command goes on with the sweep\n"
    )

    flags[3:3] = ["3", "--parallel", "2"]
    del flags[6]
    result = run("sweep.py", *flags, cwd=tmp_path, WANDB_MODE="disabled")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "001  started" not in result.stdout
    ranking = [line.split() for line in result.stdout.splitlines() if line[:4].strip().isdecimal()]
    ranking = [line for line in ranking if line[0] in "123"]
    assert sorted(line[1] for line in ranking) == ["001", "002", "003"]
    accuracies = [float(line[2]) for line in ranking]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 50
    for name in ("001", "002", "003"):
        assert (tmp_path / "runs/sweep" / name / "model.pt").exists()
    best = f"next  python compare.py runs/sweep/{ranking[0][1]} runs/sweep/{ranking[1][1]}"
    assert result.stdout.splitlines()[-1] == best

    (tmp_path / "small.yaml").write_text(SMALL.replace("0.02", "0.03"))
    assert_one_line_error(run("sweep.py", *flags, cwd=tmp_path), "another sweep")


def test_hopeless_run_is_stopped_early(small_dir, tmp_path):
    sweep = {
        "method": "grid",
        "metric": {"name": "wrong", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 2},
        "parameters": {"epochs": {"value": 12}, "lr": {"values": [0.005, 1e-9]}},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(sweep))
    flags = (
        "--config",
        "grid.yaml",
        "--dir",
        "grid",
        "--",
        "--data_dir",
        small_dir,
        "--schedule",
        "constant",
    )
    result = run("sweep.py", *flags, cwd=tmp_path, WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    assert "001  finished wrong" in result.stdout and "002  stopped" in result.stdout
    assert not (tmp_path / "grid/002/model.pt").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("metric: {name: acc, goal: maximize}", "needs a metric"),
        ("name: acc", "must be of acc"),
        ("method: bayes", "'method' is a required property"),
    ],
)
def test_sweep_that_cannot_work_is_refused(change, reason, tmp_path):
    text = SMALL.replace(change, "name: loss" if change == "name: acc" else "")
    (tmp_path / "bad.yaml").write_text(text)
    assert_one_line_error(run("sweep.py", "--config", "bad.yaml", cwd=tmp_path), "bad.yaml", reason)
