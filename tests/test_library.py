"""train.train() in a program of the caller: in a thread, beside a W&B run, and without a trace."""

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import SETTINGS, contents
from programs import run

import program
import train

QUICK = {"epochs": 1, "batch_size": 64, "l1_size": 4, "l2_size": 8}
PRECISIONS = [getattr(torch.backends, name).conv for name in ("cudnn", "mkldnn")]
PRECISIONS += [getattr(torch.backends, name).matmul for name in ("cuda", "mkldnn")]
WANDBS_OWN = ("WANDB_SERVICE", "TORCHINDUCTOR_CACHE_DIR")  # for child processes


def state_of_the_process() -> dict:
    return {
        "environment": {name: value for name, value in os.environ.items() if name not in WANDBS_OWN},
        "log level": logging.getLogger("wandb").level,
        "logging": logging.root.manager.disable,
        "output": (sys.stdout, sys.stderr),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "convolutions": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "precision": [kind.fp32_precision for kind in PRECISIONS],
        "threads": (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
    }


def trained_under_settings_of_the_caller() -> int:
    """Train in this thread and in another, where the caller has changed all that can be changed."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    logging.disable(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = train.Config(**json.loads(sys.argv[1]))
    with torch.autocast("cpu", torch.bfloat16):
        for pool in (None, ThreadPoolExecutor(1)):
            if pool:
                torch.backends.fp32_precision = "tf32"  # the newer names, which exclude the older ones
            before = state_of_the_process()
            run_dir = train.train(config) if pool is None else pool.submit(train.train, config).result()
            assert run_dir == Path("runs/002" if pool else "runs/001")
            assert state_of_the_process() == before
    return 0


def test_settings_of_the_caller_are_neither_used_nor_changed(finished, small_dir, tmp_path):
    settings = json.dumps({"data_dir": str(small_dir), "log_images": "5", **SETTINGS})
    result = run(trained_under_settings_of_the_caller, settings, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    for name in ("001", "002"):
        assert contents(tmp_path / "runs" / name) == contents(finished)
        assert list((tmp_path / "runs" / name / "wandb").glob("offline-run-*/*.wandb"))


def trained_as_by_an_agent() -> int:
    """What wandb.agent(function=...) does: a thread, an open run, and its id in the environment."""
    import wandb

    def function() -> None:
        with wandb.init(project="sweep", dir=".", reinit="create_new", id="trial1") as mine:
            run_dir = train.train(config)
            summary = json.loads((run_dir / "summary.json").read_text())
            mine.log({"acc": summary["acc"]})
            ours.append(json.loads((run_dir / "config.json").read_text())["wandb_id"])

    ours, config = [], train.Config(**json.loads(sys.argv[1]))
    os.environ |= {"WANDB_RUN_ID": "trial1", "WANDB_SWEEP_ID": "sweep1"}
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
    del os.environ["WANDB_RUN_ID"], os.environ["WANDB_SWEEP_ID"]
    assert len(ours) == 1 and ours[0] != "trial1" and "WANDB_DATA_DIR" not in os.environ
    return 0


def test_run_of_the_caller_is_neither_taken_over_nor_finished(tiny_dir, tmp_path):
    settings = json.dumps({"data_dir": str(tiny_dir), "log_images": "5", **QUICK})
    result = run(trained_as_by_an_agent, settings, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*-trial1"))) == 1
    assert len(list(tmp_path.glob("runs/001/wandb/offline-run-*"))) == 1
    # Theirs ends with what they logged, and ours without a word.
    assert re.findall(r"wandb: +(\w+) [\d.]+\n", result.stderr) == ["acc"], result.stderr


def trained_before_the_caller_uses_wandb() -> int:
    import wandb

    train.train(train.Config(**json.loads(sys.argv[1])))
    with wandb.init(project="mine", dir=".") as mine:
        assert not mine.settings.silent
        mine.log({"a": 1})
    return 0


def test_later_run_of_the_caller_is_like_any_other(tiny_dir, tmp_path):
    settings = json.dumps({"data_dir": str(tiny_dir), "log_images": "5", **QUICK})
    result = run(trained_before_the_caller_uses_wandb, settings, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0 and "wandb: Tracking run" in result.stderr, result.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_two_trainings_at_once_give_what_each_gives_alone(small_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config, before = train.Config(data_dir=str(small_dir), **QUICK), (sys.stdout, sys.stderr)
    with ThreadPoolExecutor(2) as pool:
        run_dirs = set(pool.map(train.train, [config, config]))
    assert run_dirs == {Path("runs/001"), Path("runs/002")} and (sys.stdout, sys.stderr) == before
    assert all((run_dir / "model.pt").exists() for run_dir in run_dirs)
    files = [run_dir / "predictions/epoch-001.csv" for run_dir in [train.train(config), *run_dirs]]
    assert len({file.read_text() for file in files}) == 1


def test_handlers_of_the_caller_stay_and_default_ones_come_back():
    def handler(number, frame):
        raise NotImplementedError

    saved = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, handler)
        with pytest.raises(KeyboardInterrupt, match="hint"), program.stop_signals("hint") as stop_if_asked:
            assert signal.getsignal(signal.SIGTERM) is handler
            signal.raise_signal(signal.SIGINT)
            stop_if_asked()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, previous in zip((signal.SIGINT, signal.SIGTERM), saved):
            signal.signal(number, previous)


@pytest.mark.parametrize("error", [None, OSError("full"), BrokenPipeError()])
def test_output_may_be_any_object_with_write(error):
    def fail() -> None:
        print("started")
        if error:
            raise error

    class Tee:
        def write(self, text: str) -> None:
            texts.append(text)

        def flush(self) -> None:
            pass

    for stream in (io.StringIO(), Tee()):
        texts = []
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            status = program.exit_status(fail)
        text = stream.getvalue() if isinstance(stream, io.StringIO) else "".join(texts)
        assert text.startswith("started\n") and (status == 0) == (error is None)
        assert text.count("\n") == (1 if error is None else 2)
