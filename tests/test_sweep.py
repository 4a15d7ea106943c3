import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT, assert_one_line_error
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from programs import environment, run_python

import sweep
import train
import wandb_run

SMALL = """
entity: team
method: random
metric: {name: acc, goal: maximize}
parameters:
  lr: {distribution: log_uniform_values, min: 0.01, max: 1}
  epochs: {value: 2}
"""
WANDB_KEYS = {"program", "project", "entity", "name", "description", "method", "metric", "parameters"}
WANDB_KEYS |= {"early_terminate", "command", "run_cap"}


@pytest.fixture
def stub(tmp_path) -> Path:
    """A folder with sweep.py, a train.py that does not train, and a sweep.yaml."""
    shutil.copyfile(ROOT / "sweep.py", tmp_path / "sweep.py")
    shutil.copyfile(ROOT / "tests" / "stub_train.py", tmp_path / "train.py")
    (tmp_path / "sweep.yaml").write_text(SMALL)
    return tmp_path


def start(cwd: Path, *flags, pause=0.02) -> subprocess.Popen:
    command = [sys.executable, str(cwd / "sweep.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        command, cwd=cwd, env=environment(WANDB_MODE="disabled", PAUSE=str(pause)), **pipes
    )


def wait_for(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(process.stderr.read())


def starts(cwd: Path) -> list[list[str]]:
    """The starts of train.py: the run, the process, if it was resumed, the learning rate, data, device."""
    return [line.split() for line in (cwd / "runs/sweep/starts").read_text().splitlines()]


def ranking(output: str) -> list[list[str]]:
    table = output.split("\nrank")[1].splitlines()[1:]
    return [line.split() for line in table if line[:4].strip().isdecimal()]


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_sweep_is_one_that_wandb_takes_and_train_understands():
    config = yaml.safe_load((ROOT / "sweep.yaml").read_text())
    assert {"program", "method", "parameters"} <= set(config) <= WANDB_KEYS
    assert (ROOT / config["program"]).exists() and config["project"] == wandb_run.PROJECT
    assert config["method"] == "bayes" and config["metric"] == {"name": "acc", "goal": "maximize"}
    assert set(config["early_terminate"]) == {"type", "min_iter", "eta"}
    assert config["parameters"]["val_size"]["value"] > 0
    for parameter, choice in config["parameters"].items():
        assert set(choice) in ({"value"}, {"values"}, {"distribution", "min", "max"})
        for value in choice.get("values", [choice.get("value"), choice.get("min"), choice.get("max")]):
            if value is not None:
                train.parse_config([f"--{parameter}={value}"])  # what W&B's agent passes


def test_sweep_trains_runs_that_have_its_settings(tiny_dir, tmp_path):
    config = yaml.safe_load((ROOT / "sweep.yaml").read_text())
    del config["early_terminate"]
    # The small data have less to hold out, and two epochs are enough to see.
    config["parameters"] |= {"val_size": {"value": 200}, "epochs": {"value": 2}}
    config["parameters"]["batch_size"]["values"] = [64, 128]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", "small.yaml", "--count", "1", "--", "--data_dir", str(tiny_dir)]
    result = run_python(ROOT / "sweep.py", *flags, cwd=tmp_path, WANDB_MODE="disabled")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    ((rank, name, accuracy, epochs, *parameters),) = ranking(result.stdout)
    assert (rank, name, epochs) == ("1", "001", "2") and (tmp_path / "runs/sweep/001/model.pt").exists()
    summary, settings = (
        json.loads((tmp_path / f"runs/sweep/001/{file}.json").read_text()) for file in ("summary", "config")
    )
    assert float(accuracy) == pytest.approx(summary["acc"], abs=1e-3)
    shown = dict(zip(parameters[::2], map(float, parameters[1::2])))
    assert set(shown) == set(config["parameters"])
    assert all(settings[name] == pytest.approx(value, rel=1e-3) for name, value in shown.items())

    (tmp_path / "small.yaml").write_text((tmp_path / "small.yaml").read_text().replace("0.05", "0.06"))
    assert_one_line_error(run_python(ROOT / "sweep.py", *flags, cwd=tmp_path), "another sweep")


def test_stopped_sweep_leaves_no_process_and_resumes_at_the_last_epoch(stub):
    """By SIGTERM. By Ctrl-C: see test_interrupted_run_finds_its_data_and_gpu_where_this_machine_has_them."""
    process = start(stub, "--count", 2, pause=1)
    metrics = stub / "runs/sweep/001/metrics.csv"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:  # until the first of two epochs
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not is_alive(int(starts(stub)[0][1]))
    assert not (stub / "runs/sweep/001/model.pt").exists()

    result = run_python("sweep.py", "--count", 2, cwd=stub)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith("001  resumed  epochs 2  lr ")
    assert "001  finished  acc" in result.stdout and "002  started" in result.stdout
    assert [line[0] + line[2] for line in starts(stub)] == ["001False", "001True", "002False"]
    assert [line.split(",")[1] for line in metrics.read_text().splitlines()] == ["epoch", "1", "2"]


def test_two_processes_do_the_runs_of_one_sweep_together(stub):
    processes = [start(stub, "--count", 8, pause=0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    names = [f"{number:03d}" for number in range(1, 9)]
    assert sorted(line[0] for line in starts(stub)) == names  # all of them, none twice
    assert len({line[3] for line in starts(stub)}) == 8  # and no settings twice
    for output, error in outputs:
        assert error == "" and "started" in output
        assert sorted(line[1] for line in ranking(output)) == names  # each waits for the other's last run
    together = [line for output, _ in outputs for line in output.splitlines() if "  finished  " in line]
    assert sorted(line[:3] for line in together) == names


@pytest.mark.parametrize("child_dies_too", [True, False])
def test_run_of_a_killed_sweep_is_taken_up_once_nothing_works_on_it(child_dies_too, stub):
    process = start(stub, "--count", 2, pause=0.6)
    wait_for(process, "001  started")
    while not (stub / "runs/sweep/001/config.json").exists():
        time.sleep(0.02)
    process.kill()
    process.communicate()
    child = int(starts(stub)[0][1])
    if child_dies_too:
        os.kill(child, signal.SIGKILL)
    processes = [start(stub, "--count", 2) for _ in range(2)]
    outputs = [each.communicate(timeout=60) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], outputs
    resumed = [line for output, _ in outputs for line in output.splitlines() if line.startswith("001  ")]
    assert [line[5:13].strip() for line in resumed] == ["resumed", "finished"]
    assert sorted(line[0] + line[2] for line in starts(stub)) == ["001False", "001True", "002False"]
    assert not is_alive(child)
    for output, error in outputs:
        assert error == "" and sorted(line[1] for line in ranking(output)) == ["001", "002"]
    # A run that its own process finished has each epoch once.
    metrics = (stub / "runs/sweep/001/metrics.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in metrics] == ["epoch", "1", "2"]


def test_hopeless_run_is_stopped_early_but_not_in_its_last_epoch(stub):
    config = {
        "method": "grid",
        "metric": {"name": "wrong", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 2},
        "parameters": {"epochs": {"values": [12, 2]}, "lr": {"values": [0.5, 0.1]}},
    }
    (stub / "grid.yaml").write_text(yaml.safe_dump(config))
    flags = ("--config", "grid.yaml", "--", "--pause", 0.1)
    result = run_python("sweep.py", *flags, cwd=stub)
    assert result.returncode == 0, result.stderr
    assert "001  finished  wrong 38 after 12 epochs" in result.stdout
    assert "002  stopped   wrong 88 after 2 epochs" in result.stdout
    assert not (stub / "runs/sweep/002/model.pt").exists()
    # Two epochs are all that these have, so they export their models.
    assert "003  finished" in result.stdout and "004  finished" in result.stdout
    assert (stub / "runs/sweep/004/model.pt").exists()
    assert [line[1] for line in ranking(result.stdout)] == ["001", "003", "002", "004"]
    assert "005" not in result.stdout  # the grid has four points, fewer than --count


def test_failed_run_is_reported_and_does_not_stop_the_sweep(sweep_main, stub):
    (stub / "sweep.yaml").write_text("method: grid\nparameters:\n  lr: {values: [0.2, 7, 0.3]}\n")
    result = sweep_main("--", "--epochs", 1)
    assert result.returncode == 0 and result.stderr == ""
    assert "001  finished  acc 21 after 1 epoch" in result.stdout.splitlines()
    line = "002  failed    error: the loss is nan (its output is in runs/sweep/002.log)"
    assert line in result.stdout.splitlines()
    assert [line[1] for line in ranking(result.stdout)] == ["003", "001"]  # by acc, the more the better
    assert result.stdout.splitlines()[-1].endswith("compare.py runs/sweep/003 runs/sweep/001")
    again = sweep_main("--", "--epochs", 1)
    assert again.stdout == result.stdout[result.stdout.index("\nrank") :]

    (stub / "sweep.yaml").write_text("method: grid\nparameters:\n  lr: {values: [7]}\n")
    assert_one_line_error(sweep_main("--dir", "bad"), "no run has a result")

    # Runs that all fail, for example for want of the data, are not tried to the last.
    (stub / "sweep.yaml").write_text("method: random\nparameters:\n  lr: {value: 7}\n")
    result = sweep_main("--dir", "worse", "--count", 99)
    assert_one_line_error(result, "the first 5 runs failed: the rest was not tried.")
    assert result.stdout.count("failed") == 5


def test_same_seed_draws_the_same_settings_and_another_seed_does_not(sweep_main, stub):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        sweep_main("--count", 2, "--dir", folder, "--seed", seed)
    drawn = [
        [line.split()[3] for line in (stub / name / "starts").read_text().splitlines()] for name in "abc"
    ]
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])


@pytest.mark.parametrize(
    ("spec", "distribution"),
    [
        ({"value": 3}, CategoricalDistribution([3])),
        ({"value": "fp32", "distribution": "constant"}, CategoricalDistribution(["fp32"])),
        ({"values": [1, 2.5, "a"]}, CategoricalDistribution([1, 2.5, "a"])),
        ({"values": [1], "distribution": "categorical"}, CategoricalDistribution([1])),
        ({"min": 1, "max": 5}, IntDistribution(1, 5)),
        ({"min": 1, "max": 5, "distribution": "int_uniform"}, IntDistribution(1, 5)),
        ({"min": 1, "max": 5.0}, FloatDistribution(1, 5)),
        ({"min": 1, "max": 5, "distribution": "uniform"}, FloatDistribution(1, 5)),
        (
            {"min": 0.01, "max": 1, "distribution": "log_uniform_values"},
            FloatDistribution(0.01, 1, log=True),
        ),
        (
            {"min": -3, "max": 0, "distribution": "log_uniform"},
            FloatDistribution(math.exp(-3), 1, log=True),
        ),
        ({"min": 8, "max": 64, "q": 8, "distribution": "q_uniform"}, IntDistribution(8, 64, step=8)),
        ({"min": 30, "max": 129, "q": 32, "distribution": "q_uniform"}, IntDistribution(32, 128, step=32)),
        # YAML reads 1e-4 as text.
        ({"min": "1e-4", "max": 0.1}, FloatDistribution(1e-4, 0.1)),
    ],
)
def test_distributions_of_wandb_become_those_of_optuna(spec, distribution):
    assert sweep.to_distribution("lr", spec) == distribution


@pytest.mark.parametrize(
    ("stop", "epochs"),
    [
        ({"type": "hyperband", "min_iter": 1}, [1, 3, 9]),
        ({"type": "hyperband", "min_iter": 2, "eta": 2}, [2, 4, 8]),
        ({"type": "hyperband", "max_iter": 27, "s": 2}, [3, 9]),
    ],
)
def test_pruner_looks_at_the_epochs_of_wandb_s_hyperband(stop, epochs):
    """A run whose metric drops just after a good first rung is stopped at the next rung, and not before."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for first, rung in zip([0, *epochs], epochs):
        study = optuna.create_study(direction="maximize", pruner=sweep.to_pruner(**stop))
        good, bad = study.ask(), study.ask()
        for epoch in range(1, epochs[-1] + 1):
            good.report(50, epoch)
            assert not good.should_prune()
        for epoch in range(1, rung + 1):
            bad.report(99 if epoch <= first else 1, epoch)
            assert bad.should_prune() == (epoch == rung)


@pytest.mark.parametrize(
    ("old", "new", "reasons"),
    [
        ("metric: {name: acc, goal: maximize}", "", ["needs a metric"]),
        ("goal: maximize", "goal: best", ["minimize", "maximize"]),
        ("goal: maximize", "target: 99", ["metric"]),
        ("method: bayes", "method: bayes\nrun_cap: 3", ["run_cap is not supported"]),
        ("method: bayes", "method: bayes\nearly_terminate: {type: hyperband}", ["min_iter"]),
        ("log_uniform_values, min: 0.01", "int_uniform, min: 0.5", ["parameter lr", "int_uniform"]),
        ("log_uniform_values, min: 0.01", "q_uniform, q: 0.25, min: 0", ["parameter lr", "q_uniform"]),
        ("method: bayes", "", ["method one of random, bayes, grid"]),
        ("method: bayes", "method: bayes\nprogram: other.py", ["program must be train.py"]),
        ("method: bayes", "method: custom", ["method one of random, bayes, grid"]),
        ("method: bayes", "method: grid", ["grid needs a value or values"]),
        ("method: bayes", "method: bayes\nearly_terminate: {type: envelope}", ["hyperband"]),
        ("method: bayes", "method: bayes\nearly_terminate: {type: hyperband, max_iter: 9, s: 2, eta: 0}",
         ["early_terminate needs", "eta is 2 or more"]),
        ("method: bayes", "method: bayes\nearly_terminate: {type: hyperband, min_iter: 1, strict: true}",
         ["strict of early_terminate is not supported"]),
        ("method: bayes", "method: bayes\nearly_terminate:", ["early_terminate must hold names and values"]),
        ("method: bayes", "method: bayes\ndescription: 2026-11-27", ["date"]),
        ("log_uniform_values, min: 0.01, max: 1", "log_uniform, min: 0, max: 800", ["parameter lr", "800"]),
        ("log_uniform_values, min: 0.01, max: 1", "categorical, values: [[1]]", ["parameter lr", "[[1]]"]),
        ("distribution: log_uniform_values, min: 0.01, max: 1", "min: 0.1, max: .inf", ["Out of range"]),
        ("log_uniform_values", "normal", ["parameter lr", "normal"]),
        ("log_uniform_values", "q_int_uniform", ["parameter lr", "q_int_uniform"]),
        ("distribution: log_uniform_values, min: 0.01, max: 1", "values: [1], probabilities: [1]",
         ["parameter lr", "categorical", "probabilities"]),
        ("distribution: log_uniform_values, min: 0.01, max: 1", "parameters: {a: {value: 1}}",
         ["parameter lr must hold a value, values, or min and max"]),
        ("min: 0.01", "min: 0", ["parameter lr", "log_uniform_values"]),
        ("min: 0.01, ", "", ["parameter lr", "log_uniform_values"]),
        ("min: 0.01", "min: 2", ["parameter lr", "log_uniform_values"]),
        ("min: 0.01", "min: low", ["parameter lr", "log_uniform_values", "low"]),
        ("epochs: {value: 2}", "epochs: 2", ["parameter epochs must hold a value, values, or min and max"]),
        (SMALL, "method: random", ["it has no parameters"]),
        ("epochs: {value: 2}", "run_dir: {value: x}", ["run_dir is no parameter"]),
        (SMALL, "- just\n- a list", ["it holds no sweep"]),
        (SMALL, "a: b: c", ["bad.yaml"]),
    ],
)  # fmt: skip
def test_sweep_that_cannot_work_is_refused_in_one_sentence(old, new, reasons, tmp_path):
    text = SMALL.replace("method: random", "method: bayes")
    old = text if old == SMALL else old
    assert old in text
    (tmp_path / "bad.yaml").write_text(text.replace(old, new))
    with pytest.raises(sweep.SweepError) as error:
        sweep.load_sweep(str(tmp_path / "bad.yaml"))
    for reason in ["bad.yaml: ", *reasons]:
        assert reason in str(error.value)


@pytest.fixture
def sweep_main(main, stub, monkeypatch):
    """Call it with flags to run the sweep in the test's own process."""
    monkeypatch.setattr(sweep, "__file__", str(stub / "sweep.py"))  # beside train.py
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda *flags: main("sweep.py", *flags, cwd=stub)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_file_without_its_flag_is_refused(sweep_main, stub):
    result = sweep_main("small.yaml")
    assert result.returncode == 2 and "small.yaml is not a flag. Name a file with --config" in result.stderr
    assert not (stub / "runs").exists()


def test_runs_of_other_flags_are_not_ranked_together(sweep_main, stub):
    small = ("--count", 1, "--", "--epochs=3")
    (stub / "sweep.yaml").write_text(SMALL.replace("  epochs: {value: 2}\n", ""))
    assert sweep_main(*small).returncode == 0
    for flags, found in (
        ((), "not no flags"),
        (("--epochs", 4), "not --epochs=4"),
        (("--epochs", 3, "--pause", "0.01"), "not --epochs=3 --pause=0.01"),
    ):
        refused = sweep_main("--count", 2, "--", *flags)
        assert_one_line_error(refused, "holds a sweep with --epochs=3 after --", found, "choose a new --dir")
    assert not (stub / "runs/sweep/002").exists()
    again = sweep_main("--count", 2, "--", "--device", "cpu", "--epochs", 3, "--data_dir", "here")
    assert again.returncode == 0 and len(ranking(again.stdout)) == 2
    assert sweep_main("--dir", "bare", "--count", 1).returncode == 0
    assert_one_line_error(sweep_main("--dir", "bare", *small), "with no flags after --, not --epochs=3")


def test_sweep_of_an_older_version_goes_on_with_any_flags(sweep_main, stub):
    assert sweep_main("--count", 1).returncode == 0
    journal = stub / "runs/sweep/study.journal"
    lines = [line for line in journal.read_text().splitlines() if '"user_attr":{"flags":' not in line]
    journal.write_text("\n".join([*lines, ""]))
    assert sweep_main("--count", 2, "--", "--pause", 0).returncode == 0
    assert_one_line_error(sweep_main("--count", 2), "holds a sweep with --pause=0 after --")


def test_interrupted_run_finds_its_data_and_gpu_where_this_machine_has_them(sweep_main, stub):
    process = start(stub, "--count", 1, "--", "--data_dir", "there", "--device", "cuda:1", pause=5)
    while not (stub / "runs/sweep/001/config.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and error == "stopped by SIGINT: the same command resumes the sweep\n"
    config = stub / "runs/sweep/001/config.json"
    config.write_text(config.read_text().replace('"pause": 5.0', '"pause": 0'))
    assert sweep_main("--count", 1, "--", "--data_dir=here", "--device=cuda").returncode == 0
    found = [line[2:3] + line[4:] for line in starts(stub)]
    assert found == [["False", "there", "cuda:1"], ["True", "here", "cuda"]]


@pytest.mark.parametrize(
    "saved, flags, passed",
    [
        ("cuda:1", [], ["--device=cuda"]),
        ("cuda", ["--device", "auto"], ["--device=cuda"]),
        ("cuda", ["--device", "cuda:3"], ["--device=cuda:3"]),
        ("cuda", ["--device", "cpu"], []),  # train.py resumes a run of a GPU on a GPU alone
        ("cpu", ["--device", "cuda"], []),
        (None, ["--device", "cuda"], []),
    ],
)
def test_run_of_a_gpu_is_resumed_on_any_gpu_and_no_other_run_is(saved, flags, passed, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"device": saved}))
    assert sweep.flags_of_this_machine(config, sweep.parse_flags(flags)) == passed
    for damage in ("", "{}", "[]", "\x00", '{"device": 1}'):
        config.write_text(damage)
        assert sweep.flags_of_this_machine(config, sweep.parse_flags(flags)) == []


@pytest.mark.parametrize("tail", ['{"op_code":5,"worker_id":"a', "{", "\0" * 300, '{"op_code":5}'])
def test_journal_whose_last_line_is_half_written_goes_on(tail, sweep_main, stub):
    assert sweep_main("--count", 1).returncode == 0
    with open(stub / "runs/sweep/study.journal", "a") as journal:
        journal.write(tail)
    for count in (2, 2):
        result = sweep_main("--count", count)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert sorted(line[1] for line in ranking(result.stdout)) == ["001", "002"]


@pytest.mark.parametrize("content", [b"", b'{"op_code":0,"worker'])
def test_journal_of_a_sweep_that_was_killed_at_its_start_is_made_again(content, sweep_main, stub):
    (stub / "runs/sweep").mkdir(parents=True)
    (stub / "runs/sweep/study.journal").write_bytes(content)
    assert sweep_main("--count", 1).returncode == 0


@pytest.mark.parametrize(
    "line", ["{", "[1]", "null", '{"op_code":5}', "\udcff", '{"op_code":5}{"op_code":5}']
)
@pytest.mark.parametrize("is_last", [True, False])
def test_damaged_journal_is_refused_in_one_line(line, is_last, sweep_main, stub):
    assert sweep_main("--count", 1).returncode == 0
    journal = stub / "runs/sweep/study.journal"
    lines = journal.read_bytes().splitlines()
    lines.insert(len(lines) if is_last else 3, line.encode(errors="surrogateescape"))
    journal.write_bytes(b"\n".join([*lines, b""]))
    assert_one_line_error(sweep_main("--count", 2), "study.journal is damaged", "new --dir")


def test_error_without_a_name_gets_that_of_the_folder(sweep_main, monkeypatch):
    def fail(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(sweep, "take_trial", fail)
    assert_one_line_error(sweep_main(), "error: runs/sweep: No locks available. The same command resumes")


def test_mistakes_of_the_user_are_one_line(sweep_main, stub):
    for flag, name in {"--lr=1": "lr", "--no-epochs": "epochs", "--resume": "resume"}.items():
        assert_one_line_error(sweep_main("--", flag), f"--{name} cannot be given")
    (stub / "bad.yaml").write_text("a: b: c")
    assert_one_line_error(sweep_main("--config", "bad.yaml"), "bad.yaml", "Fix")
    (stub / "bad.yaml").write_text("")
    assert_one_line_error(sweep_main("--config", "bad.yaml"), "bad.yaml: it holds no sweep. Fix")
    missing = "no.yaml: No such file or directory. Name the file with --config"
    assert_one_line_error(sweep_main("--config", "no.yaml"), missing)
    assert_one_line_error(sweep_main("--dir", "."), "other files", "new --dir")
    result = sweep_main("--dir", "/proc/sweep")
    assert_one_line_error(result, "error: /proc/sweep: No such file or directory. Check the name")
    (stub / "loss.yaml").write_text(SMALL.replace("acc", "loss"))
    result = sweep_main("--config", "loss.yaml", "--dir", "loss")
    assert_one_line_error(result, "the metric loss", "acc, wrong")
    assert not is_alive(int((stub / "loss/starts").read_text().split()[1]))
    (stub / "loss/study.journal").write_text("{}\n")
    result = sweep_main("--config", "loss.yaml", "--dir", "loss")
    assert_one_line_error(result, "study.journal is damaged", "new --dir")
    (stub / "optuna.py").write_text("raise ModuleNotFoundError(name='optuna')")
    result = run_python("sweep.py", cwd=stub)
    assert_one_line_error(result, "optuna", "pip install -r requirements-sweep.txt")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--count", "two"], "--count: invalid int"),
        (["--count", "0"], "--count must be at least 1"),
        (["--lr", "1"], "unrecognized arguments: --lr"),
    ],
)
def test_wrong_flags_are_refused(flags, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.parse_args(flags)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 2
    assert lines[0].startswith("usage: sweep.py") and reason in lines[1]
