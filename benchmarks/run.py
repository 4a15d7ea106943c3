"""Measure train.py against its opponents and its machine, side by side, and print the results as tables.

    python benchmarks/run.py                    everything but `accuracy`, on the GPU where there is one
    python benchmarks/run.py machine table      only these parts
    python benchmarks/run.py accuracy           what each setting gave, on a hold-out of the training set

Needs MNIST: in MNIST_TABLES_DATA, ../shared/data, or data/ (where train.py downloads it). Every training
run has a fresh process to itself; what is compared in short pieces takes turns. W&B runs offline. Let
nothing else run meanwhile.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import opponents  # noqa: E402

import train  # noqa: E402
from data import batches, load_data  # noqa: E402
from logging_utils import RunLogger, describe_environment, keep_freed_memory  # noqa: E402
from model import ConvNet, infer, load_exported, pick_device  # noqa: E402

TUTORIAL = {"batch_size": 32, "lr": 0.001, "schedule": "constant", "augment": 0.0, "label_smoothing": 0.0}
TUTORIAL.update(beta2=0.999, precision="fp32")
# Ours, to the tutorial's 98 wrong with smaller layers and with its own, and to 99 % in seconds.
QUICK = {"epochs": 1, "augment": 0, "l1_size": 16, "l2_size": 32, "batch_size": 160, "lr": 0.03}
SAME = {"epochs": 1, "augment": 0}
SMALL = {"epochs": 1, "augment": 0, "l1_size": 16, "l2_size": 16, "batch_size": 250, "lr": 0.04}
TUTORIAL_FLOP = 62.9e6  # an image of the tutorial's net, forward and backward


def data_dir() -> str:
    folders = [
        os.environ.get("MNIST_TABLES_DATA"),
        HERE.parent.parent / "shared" / "data",
        HERE.parent / "data",
    ]
    for folder in folders:
        if folder and (Path(folder) / "MNIST" / "raw").is_dir():
            return str(folder)
    sys.exit(
        "error: MNIST is not there. Run train.py once, or set MNIST_TABLES_DATA to a folder that holds it."
    )


def one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def alone(function, *arguments):
    """The result of a call in a fresh process."""
    with one_process() as pool:
        return pool.submit(function, *arguments).result()


def take_turns(contestants: dict, rounds: int) -> dict[str, float]:
    """The median seconds of each function, called once to warm up and then `rounds` times in turn."""
    device = pick_device("auto")
    seconds = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, function in contestants.items():
            start = opponents.now(device)
            function()
            if turn:
                seconds[name].append(opponents.now(device) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, header: str, rows: list[list]) -> None:
    columns = header.split(" | ")
    print(f"\n### {title}\n\n| {header} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    sys.stdout.flush()


def spread(values: list[float], digits: int = 1) -> str:
    """Mean, standard deviation and number of the values."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation} (n={len(values)})"


# ----------------------------------------------------------------------------------------------------------
# What runs in a process of its own


def ours(settings: dict, folder: str) -> dict:
    """A run of train.py: seconds by purpose, wrong guesses and peak memory after each epoch."""
    keep_freed_memory()
    device = pick_device("auto")
    spent = dict.fromkeys(("start", "losses", "epochs", "evaluation"), 0.0)
    memory = []

    def timed(purpose: str, function):
        def wrapper(*arguments):
            # Waiting for the GPU at every step would slow what is measured.
            start = time.perf_counter() if purpose == "losses" else opponents.now(device)
            result = function(*arguments)
            spent[purpose] += (time.perf_counter() if purpose == "losses" else opponents.now(device)) - start
            return result

        return wrapper

    class TimedLogger(RunLogger):
        __init__ = timed("start", RunLogger.__init__)
        log_step = timed("losses", RunLogger.log_step)

        def log_epoch(self, logits, labels):
            timed("epochs", super().log_epoch)(logits, labels)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # Linux counts in KiB

    train.RunLogger, train.infer = TimedLogger, timed("evaluation", train.infer)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        start = time.perf_counter()
        train.train(train.Config(**{"data_dir": folder, **settings}, run_dir=str(run_dir)))
        total = time.perf_counter() - start
        summary = json.loads((run_dir / "summary.json").read_text())
        rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()[1:]]
    wrong = [int(row[5]) for row in rows if row[5]]
    return {"train": summary["train_seconds"], "wrong": wrong, "memory": memory, "total": total, **spent}


def theirs(name: str, *arguments) -> list[opponents.Epoch]:
    """All epochs of an opponent."""
    return list(getattr(opponents, name)(*arguments))


def begin(name: str, *arguments) -> None:
    """Start an opponent that `go_on` trains for one epoch at a time."""
    global opponent
    opponent = getattr(opponents, name)(*arguments)


def go_on() -> opponents.Epoch | None:
    return next(opponent, None)


# ----------------------------------------------------------------------------------------------------------
# The parts


def machine(folder: str) -> None:
    """Training speed, from the tutorial's step to ours change by change, against the matrix-product rate."""
    keep_freed_memory()
    device, data = pick_device("auto"), load_data("mnist", folder)
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    low = torch.bfloat16

    def product(dtype: torch.dtype):
        size = 8192 if device.type == "cuda" else 2048
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return (lambda: [a @ b for _ in range(4)]), 4 * 2 * size**3

    def steps(
        count: int, batch_size: int, ours=True, bf16=True, channels_last=True, fused=True, augment=0.0
    ):
        model = ConvNet(mean=33.32, std=78.57) if ours else torch.nn.Sequential(*opponents.tutorial_layers())
        model = model.to(
            device, memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=fused)
        generator = torch.Generator().manual_seed(0)

        def run() -> None:
            for part, truth, _ in batches(images[:count], labels[:count], batch_size, generator, augment):
                with torch.autocast(device.type, low, enabled=bf16):
                    loss = F.cross_entropy(model(part if ours else part / 255), truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return run

    count = 60_000 if device.type == "cuda" else 2048
    plain = {"bf16": False, "channels_last": False, "fused": False}
    ladder = {
        "the tutorial's step, tensors in memory, batch 32": steps(count, 32, ours=False, **plain),
        "ReLU after the pooling": steps(count, 32, **plain),
        "channels_last": steps(count, 32, bf16=False, fused=False),
        "fused Adam": steps(count, 32, bf16=False),
        "bf16": steps(count, 32),
        "batch 64": steps(count, 64),
        "batch 128": steps(count, 128),
        "distortions (the default)": steps(count, 128, augment=1.0),
        "batch 256 (not the default: less accurate)": steps(count, 256, augment=1.0),
    }
    products = {"fp32 product": product(torch.float32), "bf16 product": product(low)}
    functions = {name: function for name, (function, _) in products.items()}
    seconds = take_turns({**ladder, **functions}, rounds=9)
    rates = {name: flop / seconds[name] for name, (_, flop) in products.items()}
    rows, before = [], None
    for name in ladder:
        speed = count / seconds[name]
        gain = f"{speed / before:.2f}" if before else ""
        rows.append(
            [name, f"{speed:,.0f}", gain, f"{100 * speed * TUTORIAL_FLOP / rates['bf16 product']:.0f} %"]
        )
        before = speed
    header = "step, each with the changes above it | images/s | gain | of the bf16 matrix rate"
    print_table("Training speed", header, rows)
    print("\n" + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()))


def race(folder: str) -> None:
    """The tutorial, our way to its accuracy, and the default recipe; their tables, logging and memory."""
    device = pick_device("auto")
    programs = {f"train.py {flags(QUICK)}": QUICK, f"train.py {flags(SAME)}": SAME, "train.py": {}}
    results, tutorial = {name: [] for name in programs}, []
    with tempfile.TemporaryDirectory() as scratch, one_process() as pool:
        pool.submit(begin, "tutorial", folder, device, 0, 5, Path(scratch)).result()
        for seed in range(5):  # in turn, because the machine's speed changes
            tutorial.append(pool.submit(go_on).result())
            for name, settings in programs.items():
                results[name].append(alone(ours, {**settings, "seed": seed}, folder))
        pool.submit(go_on).result()  # to its end
    default = results["train.py"]
    alone_five = sum(epoch[0] for epoch in tutorial)
    tables_five = sum(epoch[1] for epoch in tutorial)

    rows = [
        [
            "tutorial, 5 epochs",
            f"{tutorial[-1][2]}",
            f"{alone_five:.1f}",
            "1",
            f"{alone_five + tables_five:.1f}",
            "1",
        ]
    ]
    for name, runs in results.items():
        seconds = [sum(run["train"]) for run in runs]
        whole = [sum(run["train"]) + run["epochs"] for run in runs]
        ratios = alone_five / statistics.mean(seconds), (alone_five + tables_five) / statistics.mean(whole)
        wrong = spread([run["wrong"][-1] for run in runs])
        rows.append([name, wrong, spread(seconds), f"{ratios[0]:.1f}", spread(whole), f"{ratios[1]:.1f}"])
    header = "program | wrong | training, s | times faster | with its tables, s | times faster"
    print_table("To the tutorial's accuracy, and beyond", header, rows)
    print(f"\ntutorial: wrong after each epoch {[epoch[2] for epoch in tutorial]}")

    table = statistics.median(run["epochs"] / len(run["wrong"]) for run in default)
    of_tutorial = statistics.median(epoch[1] for epoch in tutorial)
    logging = [100 * (run["losses"] + run["epochs"]) / sum(run["train"]) for run in default]
    rows = [
        ["the tutorial's table of 10,000 rows, s", f"{of_tutorial:.2f}"],
        ["ours with CSV and metrics, s", f"{table:.2f} (1/{of_tutorial / table:.0f})"],
        ["logging of a default run, % of its training time", spread(logging)],
        ["peak memory by epoch, GiB", ", ".join(f"{gib:.2f}" for gib in default[0]["memory"])],
    ]
    print_table("Records", "what | figure", rows)


def processes(folder: str, seeds: int = 3) -> None:
    """One process and two with the same batches: wrong guesses and seconds of one epoch."""
    rows, program = [], str(HERE.parent / "train.py")
    for count in (1, 2):
        start = [] if count == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={count}"]
        results = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as scratch:
                flags = [
                    "--epochs",
                    "1",
                    "--seed",
                    str(seed),
                    "--data_dir",
                    folder,
                    "--run_dir",
                    f"{scratch}/run",
                ]
                subprocess.run(
                    [sys.executable, *start, program, *flags], check=True, stdout=subprocess.DEVNULL
                )
                results.append(json.loads(Path(scratch, "run", "summary.json").read_text()))
        wrong, seconds = ([run[key] for run in results] for key in ("wrong", "train_seconds"))
        rows.append([count, spread(wrong), spread([times[0] for times in seconds])])
    print_table("Several processes", "processes | wrong after one epoch | training, s", rows)


def example(folder: str, epochs: int = 14) -> None:
    """pytorch/examples mnist, whole."""
    result = alone(theirs, "pytorch_example", folder, pick_device("auto"), 0, epochs)
    seconds = sum(epoch[0] for epoch in result)
    rows = [[f"pytorch/examples mnist, {epochs} epochs", result[-1][2], f"{seconds:.1f}"]]
    print_table("The official example", "program | wrong | training, s", rows)


def small(folder: str, seeds: int = 10) -> None:
    """99 % in seconds: ours and train_mnist_fast in turn."""
    device, fast, runs = pick_device("auto"), [], []
    for seed in range(seeds):
        fast += alone(theirs, "fast", folder, device, seed)
        runs.append(alone(ours, {**SMALL, "seed": seed}, folder))
    accuracy = spread([100 - epoch[2] / 100 for epoch in fast], 2)
    rows = [["train_mnist_fast", accuracy, spread([epoch[0] for epoch in fast], 2), "1"]]
    ratio = statistics.mean(epoch[0] for epoch in fast) / statistics.mean(run["train"][0] for run in runs)
    accuracy = spread([100 - run["wrong"][0] / 100 for run in runs], 2)
    seconds = spread([run["train"][0] for run in runs], 2)
    rows.append([f"train.py {flags(SMALL)}", accuracy, seconds, f"{ratio:.1f}"])
    print_table("99 % in seconds", "program | accuracy, % | training, s | times faster", rows)


def evaluation(folder: str) -> None:
    """The exported model against the eager one on 10,000 images, and what starting a program costs."""
    from model import export_torchscript

    keep_freed_memory()
    device, data = pick_device("auto"), load_data("mnist", folder)
    images = data.test_images.to(device)
    model = ConvNet(mean=33.32, std=78.57).eval().to(memory_format=torch.channels_last)  # as train.py's is
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.pt"
        export_torchscript(model, path, {"classes": data.classes}, images[:8])
        exported, eager = load_exported(path)[0].to(device), model.to(device)
    contestants = {"eager": lambda: infer(eager, images), "exported": lambda: infer(exported, images)}
    seconds = take_turns(contestants, rounds=11)
    print_table("10,000 images", "model | s", [[name, f"{value:.2f}"] for name, value in seconds.items()])

    commands = {
        "import torch": ["-c", "import torch"],
        "import torch, torchvision": ["-c", "import torch, torchvision"],
        "import wandb": ["-c", "import wandb"],
        "train.py --help": [HERE.parent / "train.py", "--help"],
        "evaluate.py --help": [HERE.parent / "evaluate.py", "--help"],
    }

    def start(arguments: list) -> None:
        subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    seconds = take_turns({name: (lambda a=a: start(a)) for name, a in commands.items()}, rounds=5)
    print_table("Start-up", "program | s", [[name, f"{value:.2f}"] for name, value in seconds.items()])


def growth(folder: str) -> None:
    """How the cost of training grows with the images, and that of an epoch's records with the rows."""
    rows = []
    for held_out in (7_500, 15_000, 30_000):
        run = alone(ours, {"epochs": 2, "val_size": held_out, "img_count": held_out}, folder)
        rows.append([60_000 - held_out, f"{run['train'][1]:.1f}", held_out, f"{run['epochs'] / 2:.2f}"])
    print_table("Growth", "images | an epoch, s | rows | its records, s", rows)


def accuracy(folder: str, seeds: int = 3) -> None:
    """What each setting of the recipe gave, on 10,000 images of the training set held out."""
    ladder = {
        "the tutorial's settings": TUTORIAL,
        "bf16": {"precision": "auto"},
        "batch 128, one cycle to 0.01": {"batch_size": 128, "lr": 0.01, "schedule": "one_cycle"},
        "distortions": {"augment": 1.0},
        "label smoothing 0.1": {"label_smoothing": 0.1},
        "6 epochs (the default)": {"epochs": 6},
    }
    rows, settings = [], {"val_size": 10_000, "epochs": 5}
    for name, change in ladder.items():
        settings = {**settings, **change}
        runs = [alone(ours, {**settings, "seed": seed}, folder) for seed in range(seeds)]
        wrong, seconds = [run["wrong"][-1] for run in runs], [sum(run["train"]) for run in runs]
        rows.append([name, spread(wrong), spread(seconds)])
    print_table("Accuracy on the hold-out", "setting, with those above it | wrong | training, s", rows)


def flags(settings: dict) -> str:
    return " ".join(f"--{name} {value}" for name, value in settings.items())


def gpu(folder: str) -> None:
    """On a GPU: no step waits for it, and what torch.compile gives with its warm-up counted."""
    device, data = pick_device("auto"), load_data("mnist", folder)
    if device.type == "cpu":
        print("\nno GPU here: synchronisation and torch.compile are not measured")
        return
    data, rows = data.to(device), []
    for mode in ("eager", "default", "reduce-overhead"):
        model = ConvNet(mean=33.32, std=78.57).to(device, memory_format=torch.channels_last)
        forward = model if mode == "eager" else torch.compile(model, mode=mode)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
        generator, seconds = torch.Generator().manual_seed(0), []
        for epoch in range(3):
            start = opponents.now(device)
            for step, (images, labels, _) in enumerate(
                batches(data.train_images, data.train_labels, 128, generator, augment=1.0)
            ):
                # The first epoch compiles; after it a step that waits for the GPU is an error.
                torch.cuda.set_sync_debug_mode("error" if epoch and step else "default")
                with torch.autocast("cuda", torch.bfloat16):
                    loss = F.cross_entropy(forward(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            torch.cuda.set_sync_debug_mode("default")
            seconds.append(opponents.now(device) - start)
        rows.append([mode, *(f"{value:.2f}" for value in seconds), f"{seconds[0] + 5 * seconds[2]:.2f}"])
    print_table("torch.compile", "mode | epoch 1, s | epoch 2 | epoch 3 | six epochs", rows)
    print("\nno step of epochs 2 and 3 synchronised (torch.cuda.set_sync_debug_mode)")


ALL = (machine, race, example, small, evaluation, growth, processes, gpu, accuracy)
PARTS = {part.__name__: part for part in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [all but accuracy]")
    parts = parser.parse_args().parts or [name for name in PARTS if name != "accuracy"]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}")
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    folder = data_dir()
    environment = describe_environment(pick_device("auto"))
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    for name in parts:
        PARTS[name](folder)


if __name__ == "__main__":
    main()
