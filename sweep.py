"""Run the sweep of sweep.yaml on this machine: W&B's own sampler, no account.

    python sweep.py                                     20 runs, one after another, in runs/sweep/
    python sweep.py --count 8 --parallel 2 --dir my/sweep
    python sweep.py -- --device cuda:1 --data_dir mnist     flags of train.py that every run gets

Each run is an ordinary run directory. Stop the sweep at any time: the same command goes on with it.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from logging_utils import LOCK, exit_status, finished_epochs, stop_signals, write_json

METRICS = ("acc", "test_loss", "wrong")  # of metrics.csv, once an epoch
POLL = 0.5  # seconds between two looks at the runs


class SweepError(Exception):
    """The sweep cannot be run as asked for. The message says what, where, and what to do."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (see python sweep.py --help)\n")
    parser.add_argument("--config", default="sweep.yaml", help="what to vary, in W&B's format [sweep.yaml]")
    parser.add_argument("--count", type=int, default=20, help="runs in all [20]")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time [1]")
    parser.add_argument("--dir", default="runs/sweep", help="folder of the runs [runs/sweep]")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler [0]")
    parser.add_argument("flags", nargs="*", help="after --: flags of train.py that every run gets")
    args = parser.parse_args(argv)
    if min(args.count, args.parallel) < 1 or args.seed < 0:
        parser.error("--count and --parallel must be at least 1, --seed 0")
    if kept := [
        flag for flag in args.flags if flag.split("=")[0] in ("--run_dir", "--resume", "--help", "-h")
    ]:
        parser.error(f"{kept[0]} is not for the runs of a sweep")
    return args


def load_sweep(path: str) -> dict:
    """The sweep in a YAML file. Raises SweepError where W&B would not take it, or we could not run it."""
    import sweeps

    try:
        sweep = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} is no YAML: {error}. Mend it.") from error
    problems = (
        list(sweeps.schema_violations_from_proposed_config(sweep)) if isinstance(sweep, dict) else ["no map"]
    )
    if not problems and sweep["method"] == "bayes" and "metric" not in sweep:
        problems = ["method bayes needs a metric"]
    if not problems and sweep.get("metric", {"name": "acc"})["name"] not in METRICS:
        problems = [f"the metric must be of {', '.join(METRICS)}"]
    if problems:
        raise SweepError(f"{path}: {'; '.join(problems)}. Mend it.")
    return {"metric": {"name": "acc", "goal": "maximize"}, **sweep}


class Sweep:
    """The runs of a sweep: what each was given, what became of it, the processes at work."""

    def __init__(self, sweep: dict, args: argparse.Namespace):
        self.sweep, self.args, self.dir = sweep, args, Path(args.dir)
        self.metric, self.sign = (
            sweep["metric"]["name"],
            1 if sweep["metric"].get("goal") == "maximize" else -1,
        )
        self.state, self.processes = self.dir / "sweep.json", {}
        self.dir.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.dir / LOCK, timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise SweepError(f"another sweep is writing to --dir {self.dir}. Choose a new one.") from None
        self.runs = self.load()

    def load(self) -> dict[str, dict]:
        """The runs so far, by name: their parameters, and whether they failed or were stopped early."""
        if not self.state.exists():
            if set(os.listdir(self.dir)) - {LOCK}:
                raise SweepError(f"--dir {self.dir} holds other things. Choose a new one.")
            return {}
        try:
            saved = json.loads(self.state.read_text(encoding="utf-8"))
            same, runs = saved["sweep"] == json.loads(json.dumps(self.sweep)), dict(saved["runs"])
            for run in runs.values():
                dict(run["parameters"])
        except (ValueError, LookupError, TypeError) as error:
            raise SweepError(f"{self.state} is damaged. Choose a new --dir.") from error
        if not same:
            raise SweepError(f"{self.dir} is another sweep than {self.args.config}. Choose a new --dir.")
        return runs

    def save(self) -> None:
        write_json(self.state, {"sweep": self.sweep, "runs": self.runs})

    def history(self, name: str) -> list[float]:
        """The metric after each epoch of a run."""
        try:
            with open(self.dir / name / "metrics.csv", newline="", encoding="utf-8") as file:
                return [float(row[self.metric]) for row in csv.DictReader(file) if row[self.metric]]
        except FileNotFoundError:
            return []

    def is_over(self, name: str) -> bool:
        return "ended" in self.runs[name] or finished_epochs(self.dir / name) > 0

    def is_busy(self, name: str) -> bool:
        """Whether a process trains the run that is not ours: left by a sweep that was killed."""
        if name in self.processes or self.is_over(name) or not (self.dir / name / LOCK).exists():
            return False
        try:
            FileLock(self.dir / name / LOCK, timeout=0).acquire().lock.release()
            return False
        except Timeout:
            return True

    def known(self) -> list:
        """The runs as the sampler wants them."""
        from sweeps import SweepRun

        known = []
        for name, run in self.runs.items():
            values = self.history(name)
            known.append(
                SweepRun(
                    name=name,
                    config={key: {"value": value} for key, value in run["parameters"].items()},
                    state="finished" if self.is_over(name) else "running",
                    sampledHistory=[{self.metric: value} for value in values],
                    summaryMetrics={self.metric: values[-1]} if values else {},
                )
            )
        return known

    def start_next(self) -> bool:
        """Start a run: one that was interrupted, else a new one. False where there is none."""
        waiting = [name for name in self.runs if name not in self.processes and not self.is_over(name)]
        waiting = [name for name in waiting if not self.is_busy(name)]
        if waiting:
            name = waiting[0]
        elif len(self.runs) < self.args.count:
            import numpy
            import sweeps

            numpy.random.seed((self.args.seed, len(self.runs)))  # what the sampler draws from
            try:
                chosen = sweeps.next_run(self.sweep, self.known())
            except ValueError as error:
                raise SweepError(f"{self.args.config}: {error}. Mend it.") from error
            if chosen is None:  # a grid that is done
                return False
            name = f"{len(self.runs) + 1:03d}"
            parameters = {key: entry["value"] for key, entry in chosen.config.items()}
            self.runs[name] = {"parameters": json.loads(json.dumps(parameters, default=float))}
            self.save()
        else:
            return False
        begun = (self.dir / name / "config.json").exists()
        # What `wandb agent` passes, in its order.
        settings = [f"--{key}={value}" for key, value in sorted(self.runs[name]["parameters"].items())]
        command = [
            sys.executable,
            str(Path(__file__).with_name("train.py")),
            "--run_dir",
            str(self.dir / name),
        ]
        threads = (
            {}
            if self.args.parallel == 1
            else {"OMP_NUM_THREADS": str(max(1, cores() // self.args.parallel))}
        )
        with open(self.dir / f"{name}.log", "a", encoding="utf-8") as log:
            self.processes[name] = subprocess.Popen(
                [*command, *(["--resume"] if begun else [*settings, *self.args.flags])],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**threads, **os.environ},
                start_new_session=True,  # Ctrl-C is for us, and we stop the runs
            )
        print(f"{name}  {'goes on' if begun else 'started'}  {describe(self.runs[name])}", flush=True)
        return True

    def collect(self) -> None:
        """Note the runs that have ended, and stop those that early termination has no hope for."""
        import sweeps

        for name, process in list(self.processes.items()):
            status = process.poll()
            if status is None:
                continue
            del self.processes[name]
            values = self.history(name)
            if (status != 0 or not values) and "ended" not in self.runs[name]:
                self.runs[name]["ended"] = "failed"
                last = (
                    (self.dir / f"{name}.log")
                    .read_text(encoding="utf-8", errors="replace")
                    .splitlines()[-1:]
                )
                print(
                    f"{name}  failed   {''.join(last)} (all of it is in {self.dir / name}.log)", flush=True
                )
                self.save()
            else:
                word = self.runs[name].get("ended", "finished")
                print(
                    f"{name}  {word:8} {self.metric} {values[-1]:.6g} after {len(values)} epochs", flush=True
                )
        if "early_terminate" in self.sweep and self.processes:
            for run in sweeps.stop_runs(self.sweep, self.known()):
                if run.name in self.processes and "ended" not in self.runs[run.name]:
                    self.runs[run.name]["ended"] = "stopped"
                    self.save()
                    self.processes[run.name].terminate()

    def stop(self) -> None:
        """Stop the runs at work; each keeps its last finished epoch."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()

    def ranking(self) -> list[str]:
        """Names of the runs with a result, the best first; those that failed count for nothing."""
        ranked = [
            name for name in self.runs if self.runs[name].get("ended") != "failed" and self.history(name)
        ]
        return sorted(ranked, key=lambda name: -self.sign * self.history(name)[-1])


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(run: dict) -> str:
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in sorted(run["parameters"].items())
    )


def run_sweep(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")  # of the sampler's own affairs
    sweep = Sweep(load_sweep(args.config), args)
    with stop_signals("the same command goes on with the sweep") as stop_if_asked:
        try:
            while True:
                sweep.collect()
                while len(sweep.processes) < args.parallel and sweep.start_next():
                    pass
                if not sweep.processes and not any(map(sweep.is_busy, sweep.runs)):
                    break
                time.sleep(POLL)
                stop_if_asked()
        finally:
            sweep.stop()
    ranked = sweep.ranking()
    if not ranked:
        raise SweepError(f"no run has a result. What they said is in {sweep.dir}/001.log")
    print(f"\nrank  run  {sweep.metric:>9}  epochs  parameters")
    for rank, name in enumerate(ranked, 1):
        values = sweep.history(name)
        print(f"{rank:4}  {name}  {values[-1]:9.6g}  {len(values):6}  {describe(sweep.runs[name])}")
    best = " ".join(shlex.quote(str(sweep.dir / name)) for name in ranked[:2])
    print(f"\nnext  python compare.py {best}")


def main() -> int:
    return exit_status(lambda: run_sweep(parse_args()), SweepError)


if __name__ == "__main__":
    sys.exit(main())
