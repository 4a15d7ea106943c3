"""Run the sweep of sweep.yaml on this machine, without a W&B account.

    python sweep.py                                         20 runs, one after another, in runs/sweep/
    python sweep.py --count 8 --dir my/sweep                8 runs in another folder
    python sweep.py -- --device cuda:1 --data_dir mnist     flags of train.py that every run gets

Each run is an ordinary run directory. The same command resumes the sweep after an interruption.
Start it in several processes, also on machines that share the folder, and they work on one sweep.
"""

import argparse
import csv
import fcntl
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from operator import index
from pathlib import Path
from typing import TextIO

try:
    import optuna
    import yaml
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState
except ModuleNotFoundError as error:
    print(f"error: {error.name} is missing. Run: pip install -r requirements-sweep.txt", file=sys.stderr)
    sys.exit(2)

POLL = 0.2  # seconds between two looks at a run
DISTRIBUTIONS = {  # from W&B's distributions and their keys to Optuna's
    "constant": lambda value: CategoricalDistribution([value]),
    "categorical": lambda values: CategoricalDistribution(values),
    "int_uniform": lambda min, max: IntDistribution(index(min), index(max)),
    "uniform": lambda min, max: FloatDistribution(float(min), float(max)),
    "log_uniform": lambda min, max: FloatDistribution(math.exp(min), math.exp(max), log=True),
    "log_uniform_values": lambda min, max: FloatDistribution(float(min), float(max), log=True),
}
ROUNDED = ("q_uniform", "q_log_uniform", "q_log_uniform_values")  # the same, then a multiple of q


class SweepError(Exception):
    """The sweep cannot run. The message says why."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise SweepError(message)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usage = "sweep.py [--config FILE] [--count N] [--dir DIR] [--seed N] [-- FLAGS OF TRAIN.PY]"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage, allow_abbrev=False)
    parser.add_argument("--config", default="sweep.yaml", help="what to vary, in W&B's format [sweep.yaml]")
    parser.add_argument("--count", type=int, default=20, help="number of runs, over all processes [20]")
    parser.add_argument("--dir", type=Path, default="runs/sweep", help="folder of the runs [runs/sweep]")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampler [0]")
    parser.add_argument("flags", nargs="*", help="after --: flags of train.py that every run gets")
    args = parser.parse_args(argv)
    if args.count < 1 or args.seed < 0:
        parser.error("--count must be at least 1, and --seed at least 0")
    if refused := {flag.split("=")[0] for flag in args.flags} & {"--run_dir", "--resume", "--help", "-h"}:
        parser.error(f"{min(refused)} does not work in a sweep")
    return args


# ---- What to vary: from W&B's format to Optuna's objects ----


def load_sweep(path: str) -> dict:
    """Read a sweep in W&B's format. Raises SweepError if W&B or this program cannot run it."""
    try:
        sweep = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        require(isinstance(sweep, dict) and sweep.get("parameters"), "parameters are missing")
        labels = {"project", "entity", "name", "description"}  # W&B alone reads them
        unknown = set(sweep) - labels - {"program", "method", "metric", "parameters", "early_terminate"}
        require(not unknown, f"sweep.py does not support {', '.join(map(str, unknown))}")
        require(sweep.get("program", "train.py") == "train.py", "the program must be train.py")
        method, stop = sweep.get("method"), sweep.get("early_terminate", {})
        require(method in ("random", "grid", "bayes"), "method must be random, grid or bayes")
        optional = method != "bayes" and not stop
        require("metric" in sweep or optional, "method bayes needs a metric, and so does early_terminate")
        metric = {"goal": "minimize"} | sweep.get("metric", {"name": "acc", "goal": "maximize"})
        valid = set(metric) == {"name", "goal"} and metric["goal"] in ("minimize", "maximize")
        require(valid, "metric takes a name and a goal, minimize or maximize")
        space = {name: to_distribution(name, spec, method) for name, spec in sweep["parameters"].items()}
        pruner = to_pruner(**stop) if stop else optuna.pruners.NopPruner()
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, SweepError) as error:
        raise SweepError(f"{path}: {error}. Fix the file.") from error
    content = json.dumps(sweep, sort_keys=True, default=str)
    added = {"metric": metric["name"], "goal": metric["goal"], "space": space, "pruner": pruner}
    return {"method": method, "specs": sweep["parameters"], "content": content, **added}


def to_distribution(name: str, spec: dict, method: str) -> optuna.distributions.BaseDistribution:
    """Optuna's distribution of a parameter. `get_settings` rounds the values of a q_ distribution."""
    require(isinstance(spec, dict), f"parameter {name} needs value, values, or min and max")
    keys, choices = dict(spec), spec.get("values", [spec.get("value", 0)])
    integers = type(spec.get("min")) is type(spec.get("max")) is int
    default = "constant" if "value" in spec else "int_uniform" if integers else "uniform"
    kind = keys.pop("distribution", "categorical" if "values" in spec else default)
    what = f"parameter {name} with distribution {kind}"
    make = DISTRIBUTIONS.get(kind.removeprefix("q_") if kind in ROUNDED else kind)
    require(make, f"sweep.py does not support {what}")
    require(method != "grid" or "min" not in spec, f"method grid needs values, not {what}")
    plain = isinstance(choices, list) and all(type(choice) in (int, float, str) for choice in choices)
    require(plain, f"{what} takes numbers or text")
    require(kind not in ROUNDED or float(keys.pop("q", 1)) > 0, f"{what} needs a q above 0")
    try:
        return make(**keys)
    except (TypeError, ValueError, OverflowError) as error:
        raise SweepError(f"{what}: {error}".replace("<lambda>() ", "")) from error


def to_pruner(type: str, eta: int = 3, min_iter: int = 0, max_iter: int = 0, s: int = 0):
    """Optuna's pruner for W&B's early_terminate."""
    valid = type == "hyperband" and (min_iter or (max_iter and s))
    require(valid, "early_terminate must have type hyperband, and min_iter or max_iter and s")
    # W&B's hyperband has one bracket, with rungs at first * eta**k. Optuna's HyperbandPruner has several.
    first = min_iter or max(1, max_iter // eta**s)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=index(first), reduction_factor=index(eta))


def get_settings(params: dict, specs: dict) -> dict:
    """The settings of a run: what Optuna chose, and multiples of q for W&B's q_ distributions."""
    settings = dict(sorted(params.items()))
    for name, spec in specs.items():
        if spec.get("distribution") in ROUNDED:
            settings[name] = round(params[name] / spec.get("q", 1)) * spec.get("q", 1)
    return settings


def describe(settings: dict) -> str:
    words = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in settings.items()}
    return "  ".join(f"{key} {word}" for key, word in words.items())


# ---- The runs: each is a trial of the study, and a resumed one is a trial again ----


def lock(path: Path, wait: bool = False) -> TextIO | None:
    """Lock a file until no process has it open any more. None if it is locked already."""
    file = open(path, "a")
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    file.close()


def open_study(sweep: argparse.Namespace) -> optuna.Study:
    """Load the study in the folder, or create it. Raises SweepError if the folder holds something else."""
    journal = sweep.dir / "study.journal"
    sweep.dir.mkdir(parents=True, exist_ok=True)
    with lock(sweep.dir / ".lock", wait=True):
        known = journal.exists() or os.listdir(sweep.dir) == [".lock"]
        require(known, f"{sweep.dir} holds other files. Choose a new --dir.")
        try:
            backend = JournalFileBackend(str(journal), JournalFileOpenLock(str(journal)))
            options = {"study_name": "sweep", "direction": sweep.goal, "pruner": sweep.pruner}
            storage = optuna.storages.JournalStorage(backend)
            study = optuna.create_study(storage=storage, load_if_exists=True, **options)
        except (ValueError, LookupError, TypeError) as error:
            raise SweepError(f"{journal} is damaged. Choose a new --dir.") from error
        if "sweep" not in study.user_attrs:
            study.set_user_attr("sweep", sweep.content)
    same = study.user_attrs["sweep"] == sweep.content
    require(same, f"{sweep.dir} holds another sweep than {sweep.config}. Choose a new --dir.")
    return study


def take_run(study: optuna.Study, sweep: argparse.Namespace) -> tuple[optuna.Trial, TextIO] | None:
    """Take a run that no process works on, an interrupted or a new one: its trial and its lock."""
    with lock(sweep.dir / ".lock", wait=True):
        trials = study.get_trials(deepcopy=False)
        waiting = {trial.user_attrs["run"] for trial in trials if trial.state == TrialState.WAITING}
        for trial in trials:
            run = trial.user_attrs["run"]
            if trial.state == TrialState.RUNNING and (held := lock(sweep.dir / f".{run}.lock")):
                held.close()  # nobody works on it. Optuna cannot resume a trial, so queue its settings.
                if run not in waiting:
                    study.enqueue_trial(trial.params, user_attrs={"run": run})
                    waiting.add(run)
                study.tell(trial.number, state=TrialState.FAIL)
        number, fixed = len({trial.user_attrs["run"] for trial in trials}), {}
        if sweep.method == "grid":  # Optuna's GridSampler can give two processes the same settings
            points = itertools.product(*(kind.choices for kind in sweep.space.values()))
            fixed = dict(zip(sweep.space, next(itertools.islice(points, number, None), ())))
        if not waiting and (number >= sweep.count or (sweep.method == "grid" and not fixed)):
            return None
        if not waiting:
            study.enqueue_trial(fixed, user_attrs={"run": f"{number + 1:03d}"})
        # Each run has a seed of its own, so that two processes do not draw the same settings.
        sampler = optuna.samplers.TPESampler if sweep.method == "bayes" else optuna.samplers.RandomSampler
        study.sampler = sampler(seed=(100_003 * sweep.seed + number) % 2**32)
        trial = study.ask(sweep.space)
        return trial, lock(sweep.dir / f".{trial.user_attrs['run']}.lock")


def read_metric(run_dir: Path, name: str) -> dict[int, float]:
    """The metric of a run after each epoch. Raises SweepError if train.py does not write it."""
    try:
        text = (run_dir / "metrics.csv").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # the last line may be half written
    names = [column for column in rows.fieldnames or [name] if column not in ("step", "epoch", "loss")]
    cure = f"Use {' or '.join(names)}, and a new --dir."
    require(name in names, f"the metric {name} is not in {run_dir}/metrics.csv. {cure}")
    return {int(row["epoch"]): float(row[name]) for row in rows if row[name]}


def train_run(study: optuna.Study, trial: optuna.Trial, held: TextIO, sweep: argparse.Namespace) -> None:
    """Train a run until it ends or the pruner stops it, and tell the study."""
    run, settings = trial.user_attrs["run"], get_settings(trial.params, sweep.specs)
    run_dir, log_path, values, pruned = sweep.dir / run, sweep.dir / f"{run}.log", [], False
    config = run_dir / "config.json"
    verb, flags = ("resumed", ["--resume"]) if config.exists() else ("started", [])
    print(f"{run}  {verb}  {describe(settings)}", flush=True)
    flags = flags or [*(f"--{name}={value}" for name, value in settings.items()), *sweep.flags]
    command = [sys.executable, Path(__file__).with_name("train.py"), "--run_dir", run_dir, *flags]
    with open(log_path, "a", encoding="utf-8") as log:
        # The child has the lock open too: if only we are killed, no other process takes its run.
        options = {"pass_fds": [held.fileno()], "start_new_session": True}  # Ctrl-C is for us alone
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
    try:
        while child.returncode is None and not pruned and not sweep.signals:
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL)
            for epoch, value in list(read_metric(run_dir, sweep.metric).items())[len(values) :]:
                values.append(value)
                trial.report(value, epoch)
                # After its last epoch a run exports its model, and is not stopped any more.
                if trial.should_prune() and epoch < json.loads(config.read_bytes())["epochs"]:
                    pruned = True
                    break
    finally:
        interrupted = child.returncode is None and not pruned
        child.terminate()
        child.wait()
    if interrupted:
        return  # the study has the trial as running, so the next start resumes the run
    result = f"{sweep.metric} {values[-1]:.6g} after {len(values)} epochs" if values else ""
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
        print(f"{run}  stopped   {result}", flush=True)
    elif child.returncode == 0 and values and math.isfinite(values[-1]):
        study.tell(trial, values[-1])
        print(f"{run}  finished  {result}", flush=True)
    else:
        study.tell(trial, state=TrialState.FAIL)
        lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
        print(f"{run}  failed    {lines[-1]} (its output is in {log_path})", flush=True)


def print_ranking(study: optuna.Study, sweep: argparse.Namespace) -> None:
    """Print the runs that have a result, the best first."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    trials = [trial for trial in trials if trial.value is not None]
    trials.sort(key=lambda trial: trial.value, reverse=sweep.goal == "maximize")
    require(trials, f"no run has a result. Their output is in {sweep.dir}/001.log and so on.")
    print(f"\nrank  run  {sweep.metric:>9}  epochs  parameters")
    for rank, trial in enumerate(trials, 1):
        settings = describe(get_settings(trial.params, sweep.specs))
        print(f"{rank:4}  {trial.user_attrs['run']}  {trial.value:9.6g}  {trial.last_step:6}  {settings}")
    best = " ".join(shlex.quote(str(sweep.dir / trial.user_attrs["run"])) for trial in trials[:2])
    print(f"\nnext  python compare.py {best}", flush=True)


def main() -> int:
    args, signals = parse_args(), []

    def note(number: int, frame: object) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends this process at once

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sweep = argparse.Namespace(**vars(args), **load_sweep(args.config), signals=signals)
        study = open_study(sweep)
        while not signals:
            if taken := take_run(study, sweep):
                with taken[1]:
                    train_run(study, *taken, sweep)
            elif study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                time.sleep(POLL)  # other processes train the last runs. If one is killed, we take over.
            else:
                print_ranking(study, sweep)
                return 0
    except (SweepError, OSError) as error:
        cure = ". Check --config and --dir." if isinstance(error, OSError) else ""
        print(f"error: {error}{cure}".replace("\n", " "), file=sys.stderr)
        return 2
    name = signal.Signals(signals[0]).name
    print(f"stopped by {name}: the same command resumes the sweep", file=sys.stderr)
    return 128 + signals[0]


if __name__ == "__main__":
    sys.exit(main())
