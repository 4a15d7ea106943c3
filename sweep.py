"""Run the sweep of sweep.yaml with Optuna, without a W&B account.

    python sweep.py                                         20 runs, one after another, in runs/sweep/
    python sweep.py --count 8 --dir my/sweep                8 runs in another folder
    python sweep.py -- --device cuda:1 --data_dir mnist     flags of train.py that every run gets

Each run is an ordinary run directory. The same command resumes the sweep after an interruption. Start it in
several processes, also on machines that share the folder, and they work on one sweep. All need the same
flags of train.py, so that their runs can be ranked; --device and --data_dir may differ.
"""

import argparse
import csv
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from operator import index
from pathlib import Path

try:
    import fcntl

    import optuna
    import yaml
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState
except ModuleNotFoundError as error:
    problem = f"{error.name} is missing. Run: pip install -r requirements-sweep.txt"
    if error.name == "fcntl":
        problem = "sweep.py needs Linux or macOS. On Windows use WSL, or: wandb sweep sweep.yaml"
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)

KEYS = {"project", "entity", "name", "description"}  # W&B's page shows them; nothing here does
KEYS |= {"program", "method", "metric", "parameters", "early_terminate"}
SAMPLERS = {"random": RandomSampler, "bayes": TPESampler, "grid": RandomSampler}
DISTRIBUTIONS = {  # W&B's name -> Optuna's distribution
    "constant": lambda value: CategoricalDistribution([value]),
    "categorical": lambda values: CategoricalDistribution(values),
    "int_uniform": lambda min, max: IntDistribution(index(min), index(max)),
    # As in W&B, all values are multiples of q, even if min and max are not.
    "q_uniform": lambda min, max, q=1: IntDistribution(
        round(index(min) / q) * q, round(index(max) / q) * q, step=index(q)
    ),
    "uniform": lambda min, max: FloatDistribution(float(min), float(max)),
    "log_uniform": lambda min, max: FloatDistribution(math.exp(min), math.exp(max), log=True),
    "log_uniform_values": lambda min, max: FloatDistribution(float(min), float(max), log=True),
}
OWN = {"run_dir", "resume", "help"}  # flags of train.py that sweep.py gives itself
MAX_FAILED = 5  # a start of the sweep ends if its first runs all fail; the same number as `wandb agent`
OF_THE_MACHINE = ("device", "data_dir")  # flags of train.py that may differ among the starts of a sweep


class SweepError(Exception):
    """The sweep cannot run. The message says why, and what to do."""


def load_sweep(path: str) -> dict:
    """Read a sweep in W&B's format: its content, metric, search space, options of the study."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        content = json.loads(json.dumps(content, allow_nan=False))  # as the study holds it
        if not isinstance(content, dict):
            raise ValueError("it holds no sweep")
        if unknown := set(content) - KEYS:
            raise ValueError(f"{', '.join(unknown)} is not supported")
        if content.get("method") not in [*SAMPLERS] or content.get("program", "train.py") != "train.py":
            raise ValueError(f"the program must be train.py, the method one of {', '.join(SAMPLERS)}")
        if not content.get("parameters"):
            raise ValueError("it has no parameters")
        for key in ("parameters", "metric", "early_terminate"):
            if not isinstance(content.get(key, {}), dict):
                raise ValueError(f"{key} must hold names and values, not {content[key]}")
        space = {name: to_distribution(name, spec) for name, spec in content["parameters"].items()}
        if clash := OWN & space.keys():
            raise ValueError(f"{min(clash)} is no parameter, because the sweep sets it")
        if content["method"] == "grid" and not all(hasattr(kind, "choices") for kind in space.values()):
            raise ValueError("method grid needs a value or values for every parameter")
        if content["method"] == "bayes" and "metric" not in content:
            raise ValueError("method bayes needs a metric")
        metric = {"goal": "minimize", **content.get("metric", {"name": "acc", "goal": "maximize"})}
        if set(metric) != {"name", "goal"} or metric["goal"] not in ["minimize", "maximize"]:
            raise ValueError("a metric has a name and a goal, which is minimize or maximize")
        pruner = to_pruner(**content["early_terminate"]) if "early_terminate" in content else None
        options = {"direction": metric["goal"], "pruner": pruner or optuna.pruners.NopPruner()}
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise SweepError(f"{path}: {error}. Fix the file.") from error
    except OSError as error:
        raise SweepError(f"{path}: {error.strerror}. Name the file with --config.") from error
    return {"content": content, "metric": metric["name"], "space": space, "options": options}


def to_distribution(name: str, spec: dict) -> optuna.distributions.BaseDistribution:
    """Optuna's distribution of a parameter. Without a name in `spec`, W&B's rules choose it."""
    if not isinstance(spec, dict) or "parameters" in spec:  # train.py has no nested settings
        raise ValueError(f"parameter {name} must hold a value, values, or min and max, not {spec}")
    kind = "constant" if "value" in spec else "categorical" if "values" in spec else "uniform"
    kind = "int_uniform" if type(spec.get("min")) is type(spec.get("max")) is int else kind
    kind = spec.get("distribution", kind)
    options = {key: value for key, value in spec.items() if key != "distribution"}
    try:
        with warnings.catch_warnings(action="error"):  # Optuna only warns of lists as values
            return DISTRIBUTIONS[kind](**options)
    except (KeyError, TypeError, ValueError, ArithmeticError, UserWarning) as error:
        raise ValueError(f"parameter {name}: distribution {kind} of {spec} is not supported") from error


def to_pruner(type="", eta: int = 3, min_iter: int = 0, max_iter: int = 0, s: int = 0, **unknown):
    """Optuna's pruner for W&B's early_terminate. Raises ValueError."""
    are_counts = all(isinstance(number, int) and number >= 0 for number in (eta, min_iter, max_iter, s))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} of early_terminate is not supported")
    if type != "hyperband" or not are_counts or eta < 2 or not (min_iter or (max_iter and s)):
        choice = "min_iter, or max_iter and s"
        raise ValueError(f"early_terminate needs the type hyperband, and {choice}; eta is 2 or more [3]")
    # W&B's hyperband has one bracket, with rungs at first * eta**k. Optuna's HyperbandPruner has several.
    first = min_iter or max(1, max_iter // eta**s)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=eta)


def parse_flags(flags: list[str]) -> dict[str, str]:
    """The settings that flags of train.py give: their values by their names."""
    settings, name = {}, ""
    for word in flags:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            settings[name] = value
        else:
            settings[name] = f"{settings.get(name, '')} {word}".strip()
    return settings


def lock(path: Path, wait: bool = False):
    """Lock a file until every process has closed it. None if another process holds it."""
    file = open(path, "a")
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    file.close()


def open_study(sweep: argparse.Namespace) -> optuna.Study:
    """Load the study in the folder, or create it. Raises SweepError if the folder holds something else."""
    sweep.dir.mkdir(parents=True, exist_ok=True)
    journal = str(sweep.dir / "study.journal")
    with lock(sweep.dir / ".lock", wait=True):
        if not os.path.exists(journal) and os.listdir(sweep.dir) != [".lock"]:
            raise SweepError(f"{sweep.dir} holds other files. Choose a new --dir.")
        flags = {name: value for name, value in sweep.settings.items() if name not in OF_THE_MACHINE}
        try:
            cut_half_line(journal)
            backend = JournalFileBackend(journal, JournalFileOpenLock(journal))
            options = {"storage": optuna.storages.JournalStorage(backend), **sweep.options}
            study = optuna.create_study(study_name="sweep", load_if_exists=True, **options)
            if study.user_attrs.get("sweep", sweep.content) != sweep.content:
                raise SweepError(f"{sweep.dir} holds another sweep than {sweep.config}. Choose a new --dir.")
            saved = study.user_attrs.get("flags", flags)
            if saved != flags:
                found = f"{sweep.dir} holds a sweep with {show_flags(saved)} after --"
                cure = "Give the same flags, or choose a new --dir."
                raise SweepError(f"{found}, not {show_flags(flags)}. {cure}")
            study.set_user_attr("sweep", sweep.content)
            study.set_user_attr("flags", flags)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SweepError(f"{journal} is damaged. Choose a new --dir.") from error
    return study


def cut_half_line(journal: str) -> None:
    """Cut off the last line of a journal if a process was killed while it wrote that.

    Optuna leaves out such a line when it reads, but would write the next one behind it.
    """
    writing = JournalFileOpenLock(journal)
    writing.acquire()  # what is half written now stays so
    try:
        with open(journal, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        writing.release()


def show_flags(flags: dict[str, str]) -> str:
    return " ".join(f"--{name}={shlex.quote(value)}" for name, value in sorted(flags.items())) or "no flags"


def take_trial(study: optuna.Study, sweep: argparse.Namespace):
    """The trial and the lock of an interrupted or a new run. None if none is left."""
    with lock(sweep.dir / ".lock", wait=True):
        trials = study.get_trials(deepcopy=False)
        for trial in [trial for trial in trials if trial.state == TrialState.RUNNING]:
            if held := lock(sweep.dir / f".{trial.user_attrs['run']}.lock"):
                held.close()  # no process works on it. Optuna cannot continue a trial, so queue it again.
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
                study.tell(trial.number, state=TrialState.FAIL)
        number = len({trial.user_attrs["run"] for trial in trials})
        grid = sweep.content["method"] == "grid"
        points = itertools.product(*(kind.choices for kind in sweep.space.values())) if grid else ()
        point = dict(zip(sweep.space, next(itertools.islice(points, number, None), ())))
        if not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            if number >= sweep.count or (grid and not point):
                return None
            # The sampler draws what is not in the point: nothing of a grid, else everything.
            study.enqueue_trial(point, user_attrs={"run": f"{number + 1:03d}"})
        # Each run has its own seed, so that two processes do not draw the same settings.
        study.sampler = SAMPLERS[sweep.content["method"]](seed=(100_003 * sweep.seed + number) % 2**32)
        trial = study.ask(sweep.space)
        return trial, lock(sweep.dir / f".{trial.user_attrs['run']}.lock")


def read_metric(path: Path, name: str) -> dict[int, float]:
    """The metric after each epoch, from a run's metrics.csv."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # the last line may be half written
    metrics = [column for column in rows.fieldnames or [name] if column not in ("step", "epoch", "loss")]
    if name not in metrics:
        raise SweepError(f"the metric {name} is not one of {', '.join(metrics)}. Use a new --dir, too.")
    return {int(row["epoch"]): float(row[name]) for row in rows if row[name]}


def show_settings(settings: dict) -> str:
    """Settings in a line for the terminal, with numbers of four digits."""
    words = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in settings.items()}
    return "  ".join(f"{key} {word}" for key, word in sorted(words.items()))


def flags_of_this_machine(config: Path, settings: dict[str, str]) -> list[str]:
    """A resumed run has its settings, but this machine may have the data elsewhere, and other GPUs."""
    flags = [f"--data_dir={settings['data_dir']}"] if "data_dir" in settings else []
    device = settings.get("device", "auto").replace("auto", "cuda")
    with suppress(ValueError, LookupError, TypeError):  # a damaged file, which train.py tells of
        saved = str(json.loads(config.read_bytes())["device"])
        if saved.startswith("cuda") and device.startswith("cuda"):
            flags.append(f"--device={device}")
    return flags


def train_run(study: optuna.Study, trial: optuna.Trial, held, sweep: argparse.Namespace) -> TrialState:
    """Train a run until it ends or the pruner stops it, and tell the study. Its lock is `held`."""
    run = trial.user_attrs["run"]
    run_dir, log = sweep.dir / run, sweep.dir / f"{run}.log"
    config = run_dir / "config.json"
    resumed = config.exists()
    print(f"{run}  {'resumed' if resumed else 'started'}  {show_settings(trial.params)}", flush=True)
    if resumed:
        flags = ["--resume", *flags_of_this_machine(config, sweep.settings)]
    else:
        flags = [f"--{name}={value}" for name, value in sorted(trial.params.items())] + sweep.flags
    program = Path(__file__).with_name("train.py")
    command = [sys.executable, program, "--run_dir", run_dir, *flags]
    # The child inherits the lock: if only this process is killed, no other one takes its run.
    options = {"pass_fds": [held.fileno()], "start_new_session": True, "stdin": subprocess.DEVNULL}
    values, pruned = [], False
    with open(log, "a", encoding="utf-8") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, **options)
    try:
        while child.returncode is None and not pruned:
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
            epochs = read_metric(run_dir / "metrics.csv", sweep.metric)
            for epoch, value in list(epochs.items())[len(values) :]:
                values.append(value)
                trial.report(value, epoch)
                # After its last epoch a run exports its model, and is not stopped any more.
                if trial.should_prune() and epoch < json.loads(config.read_bytes())["epochs"]:
                    pruned = True
                    break
    finally:  # if it was interrupted, the trial is still running in the study, and the next start resumes it
        child.terminate()
        child.wait()
    finished = child.returncode == 0 and values and math.isfinite(values[-1])
    state = TrialState.PRUNED if pruned else TrialState.COMPLETE if finished else TrialState.FAIL
    study.tell(trial, values[-1] if state == TrialState.COMPLETE else None, state=state)
    if state == TrialState.FAIL:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        print(f"{run}  failed    {''.join(last)} (its output is in {log})", flush=True)
    else:
        verb = "stopped " if pruned else "finished"
        epochs = f"{len(values)} epoch{'s' * (len(values) != 1)}"
        print(f"{run}  {verb}  {sweep.metric} {values[-1]:.6g} after {epochs}", flush=True)
    return state


def print_ranking(study: optuna.Study, sweep: argparse.Namespace) -> None:
    """Print the runs that have a result, the best first."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
    if not trials:
        raise SweepError(f"no run has a result. Their output is in {sweep.dir}/001.log and so on.")
    trials.sort(key=lambda trial: trial.value, reverse=sweep.options["direction"] == "maximize")
    print(f"\nrank  run  {sweep.metric:>9}  epochs  parameters")
    for rank, trial in enumerate(trials, 1):
        figures = f"{trial.user_attrs['run']}  {trial.value:9.6g}  {trial.last_step:6}"
        print(f"{rank:4}  {figures}  {show_settings(trial.params)}")
    best = " ".join(shlex.quote(str(sweep.dir / trial.user_attrs["run"])) for trial in trials[:2])
    compare = os.path.relpath(Path(__file__).with_name("compare.py"))
    print(f"\nnext  {shlex.join([sys.orig_argv[0], compare])} {best}", flush=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usage = "sweep.py [--config FILE] [--count N] [--dir DIR] [--seed N] [-- FLAGS OF TRAIN.PY]"
    summary = (__doc__ or "").partition("\n")[0]  # python -OO leaves it out
    parser = argparse.ArgumentParser(description=summary, usage=usage, allow_abbrev=False)
    parser.add_argument("--config", default="sweep.yaml", help="what to vary, in W&B's format [sweep.yaml]")
    parser.add_argument("--count", type=int, default=20, help="number of runs, over all processes [20]")
    parser.add_argument("--dir", type=Path, default="runs/sweep", help="folder of the runs [runs/sweep]")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampler [0]")
    parser.add_argument("flags", nargs="*", help="after --: flags of train.py that every run gets")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error("--count must be at least 1")
    if args.flags and not args.flags[0].startswith("--"):
        parser.error(f"{args.flags[0]} is not a flag. Name a file with --config, flags of train.py after --")
    return args


def stop(number: int, frame) -> None:
    raise KeyboardInterrupt(number)


def main() -> int:
    sweep = parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        vars(sweep).update(load_sweep(sweep.config))
        sweep.settings = parse_flags(sweep.flags)
        given = {name.removeprefix("no-") for name in sweep.settings}
        if clash := given & (OWN | sweep.space.keys()):
            raise SweepError(f"--{min(clash)} cannot be given, because the sweep sets it.")
        study, states = open_study(sweep), []
        while (taken := take_trial(study, sweep)) or study.get_trials(states=[TrialState.RUNNING]):
            if taken:
                with taken[1]:
                    states.append(train_run(study, *taken, sweep))
                if states == [TrialState.FAIL] * MAX_FAILED:
                    cure = f"Fix the cause (their output is in {sweep.dir}), and choose a new --dir."
                    raise SweepError(f"the first {MAX_FAILED} runs failed: the rest was not tried. {cure}")
            else:
                time.sleep(0.2)  # other processes train the last runs; if one is killed, we take over
        print_ranking(study, sweep)
    except (SweepError, OSError) as error:
        if isinstance(error, OSError):
            place, cure = error.filename, "Check the name, the space and the permissions."
            if place is None:
                place, cure = sweep.dir, "The same command resumes the sweep."  # its journal or a lock
                try:
                    print(flush=True)
                except OSError:
                    place = "the output"
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again at exit
            error = f"{place}: {error.strerror}. {cure}"
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        name = signal.Signals(stopped.args[0]).name
        print(f"stopped by {name}: the same command resumes the sweep", file=sys.stderr)
        return 128 + stopped.args[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
