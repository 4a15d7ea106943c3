"""Measure train.py against its opponents and the machine, side by side, and print the results as tables.

    python benchmarks/run.py                    everything but `accuracy`, on the GPU if there is one
    python benchmarks/run.py machine table      only these parts
    python benchmarks/run.py accuracy           what each setting gives, on a hold-out of the training set

It needs MNIST in the folder MNIST_TABLES_DATA, in ../shared/data or in data/, where train.py downloads it.
`table` needs no data. Each training run has its own process. Short measurements take turns. W&B is offline.
Run nothing else at the same time.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import opponents  # noqa: E402

import train  # noqa: E402
from data import ImageData, MarginSampler, batches, load_data  # noqa: E402
from logging_utils import RunLogger  # noqa: E402
from model import (  # noqa: E402
    Classifier,
    ConvNet,
    MeanOfShifts,
    export_model,
    full_precision,
    load_exported,
    predict_logits,
)
from program import CudaGraphs, describe_environment, keep_freed_memory, pick_device  # noqa: E402
from sources.drawn import draw_digits  # noqa: E402
from wandb_run import WandbRun  # noqa: E402

TUTORIAL = {"batch_size": 32, "lr": 0.001, "schedule": "constant", "augment": 0.0, "label_smoothing": 0.0}
TUTORIAL.update(beta2=0.999, precision="fp32", margin_sampling=False)
QUICK = {"epochs": 1, "augment": 0, "l1_size": 16, "l2_size": 24, "batch_size": 200, "lr": 0.03}
SAME = {"epochs": 1, "augment": 0}  # the tutorial's layers
SMALL = {"epochs": 1, "augment": 0, "l1_size": 16, "l2_size": 16, "batch_size": 250, "lr": 0.04}
TUTORIAL_FLOP = 62.9e6  # per image of the tutorial's net, forward and backward


def find_data_dir() -> str:
    folders = [HERE.parent.parent / "shared" / "data", HERE.parent / "data"]
    if "MNIST_TABLES_DATA" in os.environ:
        folders.insert(0, Path(os.environ["MNIST_TABLES_DATA"]))
    for folder in folders:
        if (folder / "MNIST" / "raw").is_dir():
            return str(folder)
    cure = "Run train.py once, or set MNIST_TABLES_DATA to a folder that holds it."
    sys.exit(f"error: MNIST is not there. {cure}")


def one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def alone(function, *arguments):
    """The result of a call in a new process."""
    with one_process() as pool:
        return pool.submit(function, *arguments).result()


def default_model() -> Classifier:
    return Classifier(ConvNet(), 0.1307, 0.3081)  # MNIST's mean and standard deviation


def take_turns(contestants: dict, rounds: int) -> dict[str, float]:
    """The median seconds of each function. Each is called once to warm up, then `rounds` times in turn."""
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


def to_flags(settings: dict) -> str:
    return " ".join(f"--{name} {value}" for name, value in settings.items())


# ----------------------------------------------------------------------------------------------------------
# What runs in a process of its own


def ours(settings: dict, data_dir: str, after: Callable[[Path], dict] = lambda _: {}) -> dict:
    """A run of train.py: seconds by purpose, wrong guesses, peak memory (GiB) after each epoch.

    What `after`, called with the run directory, returns is added.
    """
    device = pick_device("auto")
    spent = dict.fromkeys(("start", "losses", "epochs", "evaluation", "table"), 0.0)
    memory = []

    def timed(purpose: str, function):
        # Waiting for the GPU at every step would slow down what is measured. In the thread that sends the
        # tables it may fail: nobody may wait for the GPU while a CUDA graph is recorded.
        clock = time.perf_counter if purpose in ("losses", "table") else lambda: opponents.now(device)

        def wrapper(*arguments, **options):
            start = clock()
            result = function(*arguments, **options)
            spent[purpose] += clock() - start
            return result

        return wrapper

    class TimedLogger(RunLogger):
        __init__ = timed("start", RunLogger.__init__)
        log_step = timed("losses", RunLogger.log_step)

        def log_epoch(self, *arguments, **options):
            timed("epochs", super().log_epoch)(*arguments, **options)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # Linux counts in KiB

    train.RunLogger = TimedLogger
    train.predict_logits = timed("evaluation", train.predict_logits)
    WandbRun.log_epoch = timed("table", WandbRun.log_epoch)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        start = time.perf_counter()
        train.train(train.Config(**{"data_dir": data_dir, **settings}, run_dir=str(run_dir)))
        total = time.perf_counter() - start
        summary = json.loads((run_dir / "summary.json").read_text())
        with open(run_dir / "metrics.csv", newline="") as file:
            wrong = [int(row["wrong"]) for row in csv.DictReader(file) if row["wrong"]]
        more = after(run_dir)
    measured = {"train": summary["train_seconds"], "wrong": wrong, "memory": memory, "total": total}
    return {**measured, **spent, **more}


def ours_without_wandb(settings: dict, data_dir: str) -> dict:
    os.environ["WANDB_MODE"] = "disabled"  # of this process alone
    return ours(settings, data_dir)


def theirs(name: str, *arguments) -> list[opponents.Epoch]:
    """All epochs of an opponent."""
    return list(getattr(opponents, name)(*arguments))


def begin(generator_function, *arguments) -> None:
    """Start a generator that `go_on` advances, in the same process."""
    global running
    running = generator_function(*arguments)


def go_on():
    return next(running, None)


def made_up_epoch(seed: int) -> tuple[Tensor, Tensor]:
    """Logits (10,000, 10) and labels (10,000,): 99 wrong guesses, all behind the first 320 rows.

    So 419 rows get a picture in our table: the first 320 and the wrong ones.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (10_000,), generator=generator)
    wrong = 320 + torch.randperm(10_000 - 320, generator=generator)[:99]
    guesses = labels.clone()
    guesses[wrong] = (labels[wrong] + torch.randint(1, 10, (99,), generator=generator)) % 10
    logits = torch.randn(10_000, 10, generator=generator)
    logits.scatter_(1, guesses[:, None], 8.0)
    return logits, labels


def our_tables(epochs: int) -> Iterator[float]:
    """Seconds of the CSV file, the metrics and the W&B table of each epoch."""
    images, _ = draw_digits(10_000, seed=0)
    classes = [str(digit) for digit in range(10)]
    with tempfile.TemporaryDirectory() as run_dir, RunLogger(run_dir, {}, classes, images) as log:
        for epoch in range(1, epochs + 1):
            logits, labels = made_up_epoch(epoch)
            start = time.perf_counter()
            log.log_epoch(epoch, epoch, logits, labels)
            yield time.perf_counter() - start


def tutorial_tables(epochs: int, all_pictures: bool) -> Iterator[float]:
    """Seconds of the tutorial's W&B table of each epoch, with all pictures or with those of our table."""
    import wandb

    images, _ = draw_digits(10_000, seed=0)
    settings = wandb.Settings(silent=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        wandb.init(project="benchmark", mode="offline", dir=folder, settings=settings) as run,
    ):
        for epoch in range(1, epochs + 1):
            logits, labels = made_up_epoch(epoch)
            guesses, scores = logits.argmax(1), logits.softmax(1)
            pictured = (guesses != labels) | (torch.arange(10_000) < 320) | all_pictures
            start = time.perf_counter()
            table = opponents.tutorial_table(images[:, 0], guesses, labels, scores, pictured)
            run.log({"test_predictions": table})
            yield time.perf_counter() - start


# ----------------------------------------------------------------------------------------------------------
# The parts


def machine() -> None:
    """Training speed, from the tutorial's step to ours one change at a time, and the matrix-product rate."""
    keep_freed_memory()
    device, data = pick_device("auto"), load_data("mnist", find_data_dir())
    images, labels = data.train_images.to(device), data.train_labels.to(device)

    def product(dtype: torch.dtype):
        size = 8192 if device.type == "cuda" else 2048
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return (lambda: [a @ b for _ in range(4)]), 4 * 2 * size**3

    def training(
        batch_size: int, ours=True, bf16=True, channels_last=True, fused=True, augment=0.0, graph=False
    ):
        model = default_model() if ours else nn.Sequential(*opponents.tutorial_layers())
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=fused)
        generator = torch.Generator().manual_seed(0)

        def forward_backward(batch: Tensor, truth: Tensor) -> tuple[Tensor]:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(batch if ours else batch / 255), truth)
            optimizer.zero_grad(set_to_none=not graph)
            loss.backward()
            return (loss.detach(),)

        step = CudaGraphs(forward_backward) if graph else forward_backward

        def run() -> None:
            for batch, truth, *_ in batches(images[:count], labels[:count], batch_size, generator, augment):
                step(batch, truth)
                optimizer.step()

        return run

    count, rounds = (20_480, 3) if device.type == "cuda" else (2048, 9)  # images
    plain = {"bf16": False, "channels_last": False, "fused": False}
    ladder = {
        "the tutorial's step, tensors in memory, batch 32": training(32, ours=False, **plain),
        "ReLU after the pooling": training(32, **plain),
        "channels_last": training(32, bf16=False, fused=False),
        "fused Adam": training(32, bf16=False),
        "bf16": training(32),
        "batch 64": training(64),
        "batch 128": training(128),
        "distortions (the default)": training(128, augment=1.0),
        "batch 256 (not the default: less accurate)": training(256, augment=1.0),
    }
    if device.type == "cuda":
        ladder["batch 128, as a CUDA graph (the default)"] = training(128, augment=1.0, graph=True)
    products = {"fp32 product": product(torch.float32), "bf16 product": product(torch.bfloat16)}
    functions = {name: function for name, (function, _) in products.items()}
    seconds = take_turns({**ladder, **functions}, rounds)
    rates = {name: flop / seconds[name] for name, (_, flop) in products.items()}
    rows, before = [], None
    for name in ladder:
        speed = count / seconds[name]
        gain = f"{speed / before:.2f}" if before else ""
        part = 100 * speed * TUTORIAL_FLOP / rates["bf16 product"]
        rows.append([name, f"{speed:,.0f}", gain, f"{part:.0f} %"])
        before = speed
    header = "step, each with the changes above it | images/s | gain | of the bf16 matrix rate"
    print_table("Speed, one change at a time", header, rows)
    print("\n" + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()))


def race() -> None:
    """The tutorial, two ways to its accuracy and the default recipe; their tables, logging and memory."""
    data_dir, device = find_data_dir(), pick_device("auto")
    programs = {f"train.py {to_flags(QUICK)}": QUICK, f"train.py {to_flags(SAME)}": SAME, "train.py": {}}
    programs["train.py --tta"] = {"tta": True}
    results, tutorial = {name: [] for name in programs}, []
    with tempfile.TemporaryDirectory() as scratch, one_process() as pool:
        pool.submit(begin, opponents.tutorial, data_dir, device, 0, 5, Path(scratch)).result()
        for seed in range(5):  # in turn, because the machine's speed changes
            training, logging, wrong = pool.submit(go_on).result()
            print(
                f"tutorial, epoch {seed + 1}: {training:.1f} s, its table {logging:.1f} s, wrong {wrong}",
                flush=True,
            )
            tutorial.append((training, logging, wrong))
            for name, settings in programs.items():
                run = alone(ours, {**settings, "seed": seed}, data_dir)
                results[name].append(run)
                seconds, wrong = sum(run["train"]), run["wrong"][-1]
                print(f"{name}, seed {seed}: {seconds:.1f} s, wrong {wrong}", flush=True)
        pool.submit(go_on).result()  # ends the tutorial's W&B run
    tutorial_training = sum(epoch[0] for epoch in tutorial)
    tutorial_whole = tutorial_training + sum(epoch[1] for epoch in tutorial)

    wrong = tutorial[-1][2]
    rows = [["tutorial, 5 epochs", wrong, f"{tutorial_training:.1f}", "1", f"{tutorial_whole:.1f}", "1"]]
    for name, runs in results.items():
        training = [sum(run["train"]) for run in runs]
        whole = [sum(run["train"]) + run["epochs"] for run in runs]
        gain = f"{tutorial_training / statistics.mean(training):.1f}"
        whole_gain = f"{tutorial_whole / statistics.mean(whole):.1f}"
        wrong = spread([run["wrong"][-1] for run in runs])
        rows.append([name, wrong, spread(training), gain, spread(whole), whole_gain])
    header = "program | wrong | training, s | times faster | with its tables, s | times faster"
    print_table("To the tutorial's accuracy, and beyond", header, rows)

    default = results["train.py"]
    our_table = statistics.median(run["epochs"] / len(run["wrong"]) for run in default)
    their_table = statistics.median(epoch[1] for epoch in tutorial)
    logging = [100 * (run["losses"] + run["epochs"]) / sum(run["train"]) for run in default]
    memory = ", ".join(f"{gib:.2f}" for gib in default[0]["memory"])
    rows = [
        ["the tutorial's table of 10,000 rows, s", f"{their_table:.2f}"],
        [
            "how long training waits for our table, CSV file and metrics, s",
            f"{our_table:.2f} (1/{their_table / our_table:.0f})",
        ],
        ["the same and the logging of losses, % of the training time of a default run", spread(logging)],
        ["peak memory by epoch, GiB, without W&B's process", memory],
    ]
    print_table("Records", "what | figure", rows)


def table(rounds: int = 3) -> None:
    """The tutorial's table of 10,000 rows against our CSV file, metrics and W&B table, in turn."""
    contestants = {
        "the tutorial's, a picture in each row": (tutorial_tables, rounds + 1, True),
        "the tutorial's, with our 419 pictures": (tutorial_tables, rounds + 1, False),
        "ours: what training waits for, with CSV file and metrics": (our_tables, rounds + 1),
    }
    pools = {name: one_process() for name in contestants}
    for name, call in contestants.items():
        pools[name].submit(begin, *call).result()
    seconds = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, pool in pools.items():
            value = pool.submit(go_on).result()
            if turn:  # the first table pays for imports
                seconds[name].append(value)
    for pool in pools.values():
        pool.submit(go_on).result()  # ends the W&B run
        pool.shutdown()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = list(medians.values())[-1]
    rows = [[name, f"{value:.2f}", f"{value / ours:.1f}"] for name, value in medians.items()]
    print_table("The W&B table", "table of 10,000 rows | s | times ours", rows)


def processes(seeds: int = 3) -> None:
    """One process and two with the same batches: wrong guesses and seconds of one epoch."""
    data_dir, program, rows = find_data_dir(), str(HERE.parent / "train.py"), []
    for count in (1,) if torch.cuda.device_count() == 1 else (1, 2):  # each process has its GPU
        launcher = [] if count == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={count}"]
        wrong, seconds = [], []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as scratch:
                settings = {"epochs": 1, "seed": seed, "data_dir": data_dir, "run_dir": f"{scratch}/run"}
                flags = [f"--{name}={value}" for name, value in settings.items()]
                command = [sys.executable, *launcher, program, *flags]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                summary = json.loads(Path(scratch, "run", "summary.json").read_text())
            wrong.append(summary["wrong"])
            seconds.append(summary["train_seconds"][0])
        rows.append([count, spread(wrong), spread(seconds)])
    print_table("Several processes", "processes | wrong after one epoch | training, s", rows)


def example(epochs: int = 14) -> None:
    """pytorch/examples mnist, all its epochs."""
    result = alone(theirs, "pytorch_example", find_data_dir(), pick_device("auto"), 0, epochs)
    seconds = sum(epoch[0] for epoch in result)
    rows = [[f"pytorch/examples mnist, {epochs} epochs", result[-1][2], f"{seconds:.1f}"]]
    print_table("PyTorch's own example", "program | wrong | training, s", rows)


def small(seeds: int = 10) -> None:
    """99 % in seconds: ours and train_mnist_fast in turn."""
    data_dir, device, fast, runs = find_data_dir(), pick_device("auto"), [], []
    for seed in range(seeds):
        fast += alone(theirs, "fast", data_dir, device, seed)
        runs.append(alone(ours, {**SMALL, "seed": seed}, data_dir))
    accuracy = spread([100 - epoch[2] / 100 for epoch in fast], 2)
    rows = [["train_mnist_fast", accuracy, spread([epoch[0] for epoch in fast], 2), "1"]]
    ratio = statistics.mean(epoch[0] for epoch in fast) / statistics.mean(run["train"][0] for run in runs)
    accuracy = spread([100 - run["wrong"][0] / 100 for run in runs], 2)
    seconds = spread([run["train"][0] for run in runs], 2)
    rows.append([f"train.py {to_flags(SMALL)}", accuracy, seconds, f"{ratio:.1f}"])
    print_table("99 % in seconds", "program | accuracy, % | training, s | times faster", rows)


def evaluation() -> None:
    """The exported model against the eager one on 10,000 images."""
    keep_freed_memory()
    device, data = pick_device("auto"), load_data("mnist", find_data_dir())
    images = data.eval_images.to(device)

    def exported(model: Classifier):
        content = export_model(model, data.eval_images[:8], {"classes": data.classes})["model.pt"]
        return load_exported(content, device)[0]

    eager = default_model().eval().to(device)
    shifts = default_model().eval()
    shifts.net = MeanOfShifts(shifts.net)
    models = {
        "eager": eager,
        "exported": exported(default_model()),
        "exported, with --tta": exported(shifts),
    }
    contestants = {name: partial(predict_logits, model, images) for name, model in models.items()}
    seconds = take_turns(contestants, rounds=11)
    rows = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    print_table("10,000 images through the exported model", "model | s", rows)


def start() -> None:
    """What a person waits for: whole processes, and what importing and starting their libraries takes."""
    optimizer = "import torch; torch.optim.Adam([torch.ones(1, requires_grad=True)]).zero_grad()"
    first_step = "import os, train; train.RunLogger.log_step = lambda *loss: os._exit(0); train.main()"
    with tempfile.TemporaryDirectory() as folder:
        run, page = f"{folder}/run", f"{folder}/page.html"
        mnist = ["--data_dir", find_data_dir()]
        commands = {
            "import torch": ["-c", "import torch"],
            "import torch, first optimizer": ["-c", optimizer],
            "import wandb": ["-c", "import wandb"],
            "import wandb, first run": ["-c", f"import wandb; wandb.init(dir={folder!r})"],
            "train.py to its first step": ["-c", first_step, *mnist],
            "the same without W&B": ["-c", first_step, *mnist],
            "evaluate.py, 10,000 images": [f"{HERE.parent}/evaluate.py", f"{run}/model.pt", *mnist],
            "compare.py, two epochs": [
                f"{HERE.parent}/compare.py",
                f"{run}@1",
                f"{run}@2",
                "--out",
                page,
                *mnist,
            ],
        }
        two_epochs = to_flags({**QUICK, "epochs": 2, "run_dir": run}).split()
        train_py = [sys.executable, f"{HERE.parent}/train.py"]
        subprocess.run([*train_py, *two_epochs, *mnist], check=True, cwd=folder, stdout=subprocess.DEVNULL)

        def run_program(name: str) -> None:
            mode = "disabled" if "without W&B" in name else "offline"
            environment = os.environ | {"PYTHONPATH": str(HERE.parent), "WANDB_MODE": mode}
            command = [sys.executable, *commands[name]]
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)

        seconds = take_turns({name: partial(run_program, name) for name in commands}, rounds=5)
    print_table("Start-up", "program | s", [[name, f"{value:.2f}"] for name, value in seconds.items()])


def growth() -> None:
    """How an epoch, its evaluation and records, and the page grow with images, classes and picture size."""
    sizes = [(10_000, 10, 28), (20_000, 10, 28), (40_000, 10, 28), (10_000, 37, 28), (10_000, 100, 28)]
    sizes += [(2_000, 10, 28), (2_000, 10, 64), (2_000, 10, 224)]
    rows = []
    for size in sizes:
        run = alone(grown, *size)
        seconds = [run["train"][1], run["evaluation"] / 2, run["epochs"] / 2, run["table"] / 2, run["page"]]
        figures = [f"{value:.2f}" for value in (*seconds, run["page_mb"], run["memory"][-1])]
        rows.append([f"{size[0]:,}", size[1], size[2], *figures])
    header = "images | classes | side | epoch, s | evaluation, s | records, s | W&B table, s | page, s"
    print_table("Growth", f"{header} | page, MB | memory, GiB", rows)


def grown(count: int, num_classes: int, side: int) -> dict:
    """Two epochs on made-up images, evaluated on the same, and the page of the run, without pictures."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % num_classes
    patterns = torch.randint(0, 200, (num_classes, 1, side, side), dtype=torch.uint8, generator=generator)
    noise = torch.randint(0, 56, (count, 1, side, side), dtype=torch.uint8, generator=generator)
    images, classes = patterns[labels] + noise, [f"class {k}" for k in range(num_classes)]
    data = ImageData("made-up", classes, images, labels, images, labels)
    train.load_data = lambda *_: data

    def page(run_dir: Path) -> dict:
        start = time.perf_counter()
        command = [sys.executable, HERE.parent / "compare.py", run_dir, "--no_images"]
        subprocess.run(command, cwd=run_dir, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        return {"page": seconds, "page_mb": (run_dir / "compare.html").stat().st_size / 1e6}

    return ours({"epochs": 2}, "data", page)


def accuracy(seeds: int = 3) -> None:
    """What each setting of the recipe gives, on 10,000 images held out of the training set."""
    ladder = {
        "the tutorial's settings": TUTORIAL,
        "bf16": {"precision": "auto"},
        "batch 128, one cycle to 0.01": {"batch_size": 128, "lr": 0.01, "schedule": "one_cycle"},
        "distortions": {"augment": 1.0},
        "label smoothing 0.1": {"label_smoothing": 0.1},
        "margin sampling": {"margin_sampling": True},
        "beta2 0.95 (the default)": {"beta2": 0.95},
        "--tta": {"tta": True},
    }
    data_dir, rows, settings = find_data_dir(), [], {"val_size": 10_000, "epochs": 5}
    for name, change in ladder.items():
        settings = {**settings, **change}
        runs = [alone(ours, {**settings, "seed": seed}, data_dir) for seed in range(seeds)]
        wrong, seconds = [run["wrong"][-1] for run in runs], [sum(run["train"]) for run in runs]
        rows.append([name, spread(wrong), spread(seconds)])
    print_table("Accuracy, one change at a time", "setting, with those above it | wrong | training, s", rows)


def gpu(seeds: int = 3) -> None:
    """On a GPU: no step waits for it; CUDA graphs and torch.compile, with their warm-up counted; W&B."""
    data_dir, device = find_data_dir(), pick_device("auto")
    if device.type == "cpu":
        print("\nThere is no GPU here: synchronisation, CUDA graphs and torch.compile are not measured.")
        return
    rows = []
    for mode in ("as it is", "CUDA graphs (train.py)", "torch.compile", "torch.compile, reduce-overhead"):
        seconds = alone(gpu_epochs, mode, data_dir)
        total = seconds[0] + 4 * seconds[2]
        rows.append([mode, *(f"{value:.2f}" for value in (*seconds, total))])
    print_table(
        "The step on a GPU", "forward and backward | epoch 1, s | epoch 2 | epoch 3 | five epochs", rows
    )
    print("\nIn epochs 2 and 3 only the rounds waited for the GPU (torch.cuda.set_sync_debug_mode).")

    programs, rows = {}, []
    for name, settings in ((f"train.py {to_flags(QUICK)}", QUICK), ("train.py", {})):
        programs |= {name: (ours_without_wandb, settings), f"{name}, W&B offline": (ours, settings)}
    runs = {name: [] for name in programs}
    for seed in range(seeds):  # in turn
        for name, (function, settings) in programs.items():
            runs[name].append(alone(function, {**settings, "seed": seed}, data_dir))
    for name, measured in runs.items():
        training = [sum(run["train"]) for run in measured]
        to_98 = [seconds for run in measured if (seconds := seconds_to(98, run)) is not None]
        records = [100 * (run["losses"] + run["epochs"]) / sum(run["train"]) for run in measured]
        wrong = spread([run["wrong"][-1] for run in measured])
        rows.append([name, wrong, spread(training, 2), spread(to_98, 2) if to_98 else "", spread(records)])
    header = "program, without W&B or with | wrong | training, s | to 98 wrong, s | records, % of training"
    print_table("Training on a GPU", header, rows)


def seconds_to(wrong: int, run: dict) -> float | None:
    """Seconds of training to the first epoch with at most so many wrong guesses, if there is one."""
    ends = zip(accumulate(run["train"]), run["wrong"])
    return next((seconds for seconds, found in ends if found <= wrong), None)


class WaitingSampler(MarginSampler):
    """May wait for the GPU, at the start of a round."""

    def choose(self, limit: int) -> Tensor:
        torch.cuda.set_sync_debug_mode("default")
        return super().choose(limit)


@full_precision()
def gpu_epochs(mode: str, data_dir: str) -> list[float]:
    """Seconds of three epochs of the default recipe, without logging. Fails if a step waits for the GPU."""
    device, seconds = pick_device("auto"), []
    data = load_data("mnist", data_dir).to(device)
    num_images = len(data.train_labels)
    sampler = WaitingSampler(num_images, 128, 0.25).to(device)
    model = default_model().to(device)
    options = {"mode": "reduce-overhead"} if "reduce" in mode else {}
    forward = torch.compile(model, **options) if "compile" in mode else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    generator = torch.Generator().manual_seed(0)

    def forward_backward(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            logits = forward(images)
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none="graph" not in mode)
        loss.backward()
        return logits.detach(), loss.detach()

    step = CudaGraphs(forward_backward) if "graph" in mode else forward_backward
    for epoch in range(3):
        start = opponents.now(device)
        shuffled = batches(data.train_images, data.train_labels, 128, generator, 1.0, sampler)
        for number, (images, labels, _, indices) in enumerate(shuffled):
            # Epochs 1 and 2 meet new shapes. Else a step that waits for the GPU is an error.
            strict = epoch and 0 < number < num_images // 128
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
            logits, _ = step(images, labels)
            optimizer.step()
            sampler.update(indices, logits)
        torch.cuda.set_sync_debug_mode("default")
        seconds.append(opponents.now(device) - start)
    return seconds


ALL = (machine, race, table, example, small, evaluation, start, growth, processes, gpu, accuracy)
PARTS = {part.__name__: part for part in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage="%(prog)s [PART ...]")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [all but accuracy]")
    parts = parser.parse_args().parts or [name for name in PARTS if name != "accuracy"]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    pick_device("auto")  # starts the GPU, so that its name is known
    environment = describe_environment()
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    for name in parts:
        PARTS[name]()


if __name__ == "__main__":
    main()
