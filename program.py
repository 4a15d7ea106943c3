"""What the programs here share: settings as flags, the device, files, signals, errors in one line."""

import argparse
import ctypes
import errno
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field, fields
from datetime import timedelta
from importlib.metadata import distributions
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

ON_WINDOWS = sys.platform == "win32"
MAX_FILE = 2**30  # bytes; a larger file is not read
# Also what ends a line or turns the direction of writing, and what Python makes of bytes that are not UTF-8.
CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_NAME = 40  # columns of a class name on the terminal
TORCH_STATE = threading.RLock()  # torch has one random generator and one default dtype for all threads


class ConfigError(Exception):
    """A setting is out of range, or does not fit the data, the hardware or the run to resume."""


class CellError(Exception):
    """Ends a program in a notebook. IPython shows its message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


# ---- Settings: the fields of a dataclass, which are the flags of its program ----
def setting(default, help: str, low: float | None = None, high: float = 2**31 - 1, choices=()):
    """A field of a dataclass: its default, its line of --help, and its bounds or choices."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def check_settings(config) -> None:
    """Make paths text, and numpy's numbers Python's, for JSON and torch.

    Raises ConfigError if a setting is of another type, empty, or out of its bounds.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
        if value is not f.default:
            value = to_type(f.name, f.type, value)
            object.__setattr__(config, f.name, value)  # it is frozen
        if value == "":
            raise ConfigError(f"--{f.name} is empty. Give it a value, or leave it out.")
        if isinstance(value, str) and printable(value) != value:
            raise ConfigError(f"--{f.name} must not hold control characters, or bytes that are not UTF-8.")
        if choices and value not in choices:
            raise ConfigError(f"--{f.name} must be one of {', '.join(choices)}, not {value}.")
        if low is not None and not low <= value <= high:
            raise ConfigError(f"--{f.name} must be between {low} and {high}, not {value}.")


def to_type(name: str, kind: type, value):
    """The value of a setting as a str, int, float or bool, if it is one. Raises ConfigError."""
    is_text = isinstance(value, str)  # YAML reads 1e-3 as text
    try:
        plain = os.fspath(value) if kind is str else kind(value)
        is_equal = plain == value or plain != plain  # NaN differs from itself
        is_kind = isinstance(plain, str) if kind is str else is_equal and not is_text
    except (TypeError, ValueError, OverflowError):
        is_kind = False
    if not is_kind:
        found = f"the text {value!r}" if is_text else repr(value)
        raise ConfigError(f"--{name} must be of the type {kind.__name__}, not {found}.")
    return plain


def parse_settings(config_class: type, argv: list[str] | None, description: str) -> dict:
    """The settings that are given on a command line, by their names.

    Sweeps pass --tta=True or --tta=0, not --tta or --no-tta. Both are taken.
    """
    usage = "python %(prog)s [--help] [--SETTING VALUE ...]"
    parser = argparse.ArgumentParser(usage=usage, description=description, allow_abbrev=False)
    switches = {}
    for f in fields(config_class):
        kind = {"type": f.type, "metavar": "|".join(f.metadata["choices"]) or f.type.__name__}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
            switches |= {f"--{f.name}={value}": f"--{f.name}" for value in ("true", "1")}
            switches |= {f"--{f.name}={value}": f"--no-{f.name}" for value in ("false", "0")}
        text = f.metadata["help"] + ("" if f.default is None else f" [{f.default}]")
        parser.add_argument(f"--{f.name}", help=text, default=argparse.SUPPRESS, **kind)
    words = sys.argv[1:] if argv is None else argv
    return vars(parser.parse_args([switches.get(word.lower(), word) for word in words]))


def resumed_settings(config_class: type, run_dir: str, overrides: dict):
    """The settings, a `config_class`, of the run to resume. Raises ConfigError.

    Settings in `overrides`, given again as flags, must match, but the data may have moved.
    """
    path = Path(run_dir) / "config.json"
    try:
        record = json.loads(read_file(path))
        # A setting that is newer than the run gets its default.
        saved = {f.name: f.type(record.get(f.name, f.default)) for f in fields(config_class)}
        saved |= {"dataset": str(record["dataset"]), "run_dir": run_dir}  # every run has a data set
        config_class(**saved)
    except Exception as error:  # damage of any kind
        raise ConfigError(f"{path} is damaged ({error!r:.100}). Choose another --run_dir.") from error
    overrides = {name: value for name, value in overrides.items() if value != "auto"}  # decided by the run
    if saved["device"].startswith("cuda") and overrides.get("device", "").startswith("cuda"):
        saved["device"] = overrides["device"]  # any GPU will do
    dataset = os.path.expanduser(overrides.get("dataset", ""))
    if saved["dataset"] == f"{dataset}-format" or os.path.isabs(saved["dataset"]) and os.path.isdir(dataset):
        saved["dataset"] = overrides.pop("dataset")  # train() compares what it holds
    config = config_class(**{**saved, **overrides})
    longer = config.epochs > saved["epochs"] and config.schedule == "constant"  # its rates ignore the total
    may_differ = ["run_dir", "resume", "data_dir", *(["epochs"] if longer else [])]
    changed = [name for name in overrides if name not in may_differ and overrides[name] != saved[name]]
    if changed:
        changes = "; ".join(f"--{name} was {saved[name]}, now {overrides[name]}" for name in changed)
        rule = "Start a new run. (More --epochs are possible with --schedule constant.)"
        raise ConfigError(f"A resumed run keeps its settings, but {changes}. {rule}")
    before, (_, now) = record.get("processes", 1), process_group()
    if before != now and not is_finished(Path(run_dir), config.epochs):
        cure = f"Resume it with torchrun --nproc_per_node={before}, or choose another --run_dir."
        raise ConfigError(f"{run_dir} was trained in {before} processes, not in {now}. {cure}")
    return config


def is_finished(run_dir: Path, epochs: int) -> bool:
    """Whether a run has finished, with `epochs` as its setting, and its models are there."""
    settings, summary = (read_json(run_dir / name) for name in ("config.json", "summary.json"))
    ended = "finished" in summary and settings.get("epochs") == epochs
    return ended and all((run_dir / name).exists() for name in summary.get("sha256") or ["model.pt"])


def finished_hint(run_dir: str) -> str:
    """What there is to do with a finished run that is to be resumed."""
    hint = f"{run_dir} is finished: there is nothing to resume"
    if read_json(Path(run_dir, "config.json")).get("wandb_lacks_part"):
        hint += f"\nW&B may lack part of it: {start_command('publish')} {quoted(run_dir)}"
    return hint


def resume_hint(run_dir: Path) -> str:
    """The command that continues a run, or only its flags if a program that is not ours called `train`."""
    flags = f"--run_dir {quoted(run_dir)} --resume"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        ours = Path(__file__).with_name(Path(__file__).name.replace("program", "train")).resolve()
        started = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
        start = f"{start_command('train')} " if started == ours else ""
        return f"continue with {start}{flags}"
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":  # its addresses are not known here
        return f"continue with the same torchrun commands and {flags}"
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {module.name}" if module else quoted(sys.argv[0])
    return f"continue with torchrun --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']} {program} {flags}"


# ---- Notebooks, and use as a library ----
def ipython():
    """The IPython shell that this process runs in, as in a Jupyter notebook, or None."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def quoted(argument: str | Path) -> str:
    """An argument as it is typed: on Windows in double quotes, the only ones that cmd.exe knows."""
    text = str(argument)
    if not ON_WINDOWS:
        return shlex.quote(text)
    plain = re.fullmatch(r"[\w\\/:.@+=-]+", text)
    return text if plain else '"' + text.rstrip("\\") + '"'  # a path there has no "; \" would be one


def start_command(program: str) -> str:
    """What starts another of our programs, such as "evaluate", from the current directory.

    It begins with the Python that was typed, or %run in IPython. The program is beside this file. In a copy,
    both may be modules of a package, or have a prefix to their names.
    """
    python = next(filter(None, [*sys.orig_argv[:1], sys.executable]), "python")
    start = "%run" if ipython() else quoted(python)
    module = __name__.removesuffix("program") + program
    if __package__:
        return f"{start} -m {module}"
    path = Path(__file__).with_name(f"{module}.py")
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{start} {quoted(path)}"


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Begin with torch's defaults. At the end, restore the caller's settings and random generators.

    They belong to all threads, so a second block waits for the first one's end.
    """
    with TORCH_STATE, ExitStack() as restore:
        restore.callback(torch.set_default_dtype, torch.get_default_dtype())
        restore.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            restore.callback(torch.cuda.set_device, torch.cuda.current_device())
            restore.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        else:  # the seed that the GPUs' generators begin with
            restore.callback(torch.cuda.manual_seed_all, torch.initial_seed())
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":  # a mode, which slows every operation down
            restore.enter_context(torch.device("cpu"))
        with torch.inference_mode(False), torch.enable_grad():
            yield


# ---- The machine ----
def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one. Raises ConfigError if it is unusable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = os.environ.get("LOCAL_RANK")  # set by torchrun: process i uses GPU i
    if name == "cuda" or (local_rank is not None and name.startswith("cuda")):
        name = f"cuda:{local_rank or 0}"
    if name == "cpu":
        return torch.device(name)
    try:
        if not name.startswith("cuda"):  # such as mps, a Mac's GPU
            raise RuntimeError("only cpu and cuda are supported")
        if not torch.backends.cuda.is_built():
            raise RuntimeError("this torch was built without CUDA")
        torch.cuda.set_device(name)
        torch.ones(1, device=name).sum().item()  # a GPU may be too old or too new for this torch
        return torch.device(name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"The device {name} is not available: {reason}. Use cpu, or cuda with a GPU and a torch for it."
        ) from error


def process_group() -> tuple[int, int]:
    """The rank of this process and the number of processes, as torchrun says. Raises ConfigError."""
    names = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    given = {name: value for name in names if (value := os.environ.get(name))}
    with suppress(ValueError):  # not a number
        rank, world_size = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
        if 0 <= rank < world_size and (world_size == 1 or len(given) == len(names)):
            return rank, world_size
    found = ", ".join(f"{name}={value}" for name, value in given.items())
    raise ConfigError(f"{', '.join(names)} do not fit together ({found}). Unset them, or use torchrun.")


def pick_precision(name: str, device: torch.device) -> str:
    """`name`; for "auto" bf16 if the hardware has it, else fp16 (GPU) or fp32 (CPU). Raises ConfigError."""
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU. Use bf16 or fp32 on a CPU.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    cpu = torch.cpu.get_capabilities()
    return "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def describe_environment(device: str = "auto") -> dict:
    """Hardware, package versions, and the git commit of this code; "dirty" if files differ from it.

    The hardware is the CPU if that is the `device`, else the GPU that this process uses, if it uses one.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]  # the hash, not a tag
    options = {"cwd": Path(__file__).resolve().parent, "capture_output": True, "text": True}
    packages = "torchvision", "wandb"  # if they are installed
    git = subprocess.run(command, **options).stdout.strip() if shutil.which("git") else ""
    gpu = torch.cuda.is_initialized() and device != "cpu"
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return {
        "hardware": torch.cuda.get_device_name() if gpu else cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # to unpickle a TorchVersion, W&B's process would import torch
        **{found.name: found.version for name in packages for found in distributions(name=name)},
        "commit": git.removesuffix("-dirty") or None,
        "dirty": git.endswith("-dirty") if git else None,
    }


class CudaGraphs:
    """A training step, recorded as a CUDA graph: one launch instead of 80, several times faster.

    The first call with arguments of some shape runs `step` as it is, the second records it, and all others
    repeat the GPU's work alone. What its Python prints or counts is not repeated. On a CPU, and in several
    processes, every call runs `step` as it is.

    Args:
        step: takes tensors and numbers, returns tensors. It keeps gradients and states in their memory.

    Raises ConfigError if `step` needs a value from the GPU, as an `if` on one or `.item()` does.
    """

    def __init__(self, step: Callable[..., tuple[Tensor, ...]]):
        self.step, self.several = step, dist.is_initialized()
        self.seen, self.recorded = set(), {}  # by the shapes: (graph, inputs, outputs)

    def __call__(self, *arguments: Tensor | float) -> tuple[Tensor, ...]:
        key = tuple(getattr(argument, "shape", argument) for argument in arguments)
        if self.several or not arguments[0].is_cuda or key not in self.seen:
            self.seen.add(key)
            return self.step(*arguments)
        if key not in self.recorded:
            self.recorded[key] = self.record(arguments)
        graph, inputs, outputs = self.recorded[key]
        for place, argument in zip(inputs, arguments):
            if isinstance(argument, Tensor):
                place.copy_(argument)
        graph.replay()
        return tuple(output.clone() for output in outputs)

    def record(self, arguments: tuple) -> tuple:
        """Record `step`: the graph, and the tensors that it reads and writes. Raises ConfigError."""
        graph = torch.cuda.CUDAGraph()
        inputs = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        try:
            # A stream of this GPU; other threads, such as a DataLoader's, may use the GPU meanwhile.
            options = {"stream": torch.cuda.Stream(), "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **options):
                return graph, inputs, self.step(*inputs)
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            reason = str(error).splitlines()[0]
            cure = "Remove @CudaGraphs in train.py, or what needs a value from the GPU"
            raise ConfigError(f"The training step cannot be recorded: {reason}. {cure}.") from error


def progress(batches: Iterable, count: int, title: str, log) -> Iterator:
    """Pass batches (images, labels, ...) through, with a progress bar on a terminal or in a notebook.

    Args:
        count, title: images in all, and what the bar is called.
        log: the RunLogger, which knows the latest loss.
    """
    with warnings.catch_warnings(action="ignore"):  # a notebook without ipywidgets has a bar of text
        from tqdm.auto import tqdm
    place = {"disable": log.rank > 0 or None}  # None: if stderr is no terminal
    if log.rank == 0 and "IPKernelApp" in getattr(ipython(), "config", ()):
        # A notebook shows stderr on red, and for tqdm the bar of an interrupted cell is still there.
        place = {"disable": False, "file": sys.stdout, "position": 0}
    with tqdm(total=count, desc=title, unit=" images", leave=False, **place) as bar:
        for batch in batches:
            yield batch
            if not math.isnan(log.latest_loss):  # it is, until the first losses are fetched
                bar.set_postfix(loss=f"{log.latest_loss:.3f}", refresh=False)
            bar.update(len(batch[1]) * log.world_size)


# ---- Files ----
@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a scratch path; flush what the block leaves there to the disk, and rename it. Raises OSError."""
    target = Path(os.path.realpath(path))  # follow a symbolic link
    if os.path.exists(path) and not target.is_file():  # the target of /dev/stdout may be "pipe:[123]"
        raise OSError(errno.EINVAL, "is not a file that can be replaced", str(path))
    scratch = target.with_name(f".{target.name}.partial")
    try:
        yield scratch
        if scratch.exists():
            sync(scratch)
            replace_file(scratch, target)
            sync(target.parent)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        with suppress(OSError):  # it has its name, or could not be written
            scratch.unlink()


def replace_file(source: Path, target: Path) -> None:
    """Rename a file. Windows refuses while another program reads `target`: wait 2 s for it at most."""
    for wait in (0.1, 0.4, 1.5):
        with suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(wait)
    os.replace(source, target)


def check_writable(path: Path) -> None:
    """Raise OSError if a file cannot be written. A file that is there stays as it is."""
    with atomic_write(path) as scratch:
        scratch.touch()
        scratch.unlink()


def files_of_run(run_dir: str) -> Iterator[str]:
    """The paths of what train.py wrote to a directory."""
    for pattern in ("*.json", "*.pt*", "metrics.csv", "predictions/epoch-*.csv"):
        yield from map(str, Path(run_dir).glob(pattern))


def sync(path: Path) -> None:
    """Return when a file's content, or a directory's entries, would survive a power cut."""
    if ON_WINDOWS and path.is_dir():  # where nothing opens a directory
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str | Path, content) -> None:
    with atomic_write(path) as scratch:
        scratch.write_bytes(content)


def write_json(path: Path, record: dict) -> None:
    write_file(path, (json.dumps(record, indent=2, default=str) + "\n").encode())


def write_tensors(path: Path, record: dict) -> None:
    content = io.BytesIO()  # written by us, because torch hides the system's reason for a failed write
    torch.save(record, content)
    write_file(path, content.getbuffer())


def read_tensors(path: Path) -> dict:
    """What `write_tensors` wrote. Raises errors of any type if a bit is flipped; torch would not notice."""
    with zipfile.ZipFile(path) as file:
        if any(member.compress_type for member in file.infolist()):  # torch compresses none; a zip bomb
            raise zipfile.BadZipFile("its parts are compressed")
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"{damaged} has flipped bits")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_pictures(path: Path) -> dict[int, Tensor]:
    """id -> uint8 (C, H, W) of each picture in a run's pictures.pt. Raises errors of any type."""
    saved = read_tensors(path)
    ids, images = saved["ids"], saved["images"]
    kinds = ids.dtype, ids.dim(), images.dtype, images.dim(), images.shape[1] in (1, 3)
    if kinds != (torch.int64, 1, torch.uint8, 4, True):
        raise ValueError("it holds no pictures")
    return dict(zip(ids.tolist(), images, strict=True))


def read_file(path: str | Path, limit: int = MAX_FILE) -> bytes:
    """The content of a file of at most `limit` bytes. Never waits for a pipe or a device. Raises OSError."""
    if os.path.exists(path) and not (os.path.isfile(path) and os.path.getsize(path) <= limit):
        raise OSError(f"{path} is not a file of at most {limit:,} bytes")
    return Path(path).read_bytes()


def read_json(path: Path) -> dict:
    """The content of a JSON file, or {} if it is missing or damaged."""
    with suppress(Exception):
        return dict(json.loads(read_file(path)))
    return {}


# ---- Memory, signals, exit status ----
def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors, which saves 5 to 20 % of the training time on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt  # its first arguments are from malloc.h
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: keep blocks up to this size, the largest possible
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: keep so many bytes at most


@contextmanager
def stop_signals(hint: str, at_once: bool = False) -> Iterator[Callable[[], None]]:
    """Yield a function that stops the program if SIGINT or SIGTERM came; a second one ends it at once.

    With `at_once` they stop the program where it is, and the function is not needed.
    A handler that the caller has installed stays. A second interrupt does not end a notebook's kernel.
    """
    received, handlers = [], {}

    def note(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, handlers[number] if ipython() else signal.SIG_DFL)
        if at_once:
            stop_if_asked()

    def stop_if_asked() -> None:
        if received:
            raise KeyboardInterrupt(received[0], hint)  # `exit_status` reads both

    with suppress(ValueError):  # outside the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                handlers[number] = signal.signal(number, note)
    try:
        yield stop_if_asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class LossyFile(io.RawIOBase):
    """Drops what the file `raw` cannot write, because it is full or nobody reads it.

    `raw` is Python's own, because on Windows a terminal is written to in another way than a file.
    """

    def __init__(self, raw):
        self.raw, self.fileno, self.isatty = raw, raw.fileno, raw.isatty

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        with suppress(OSError):
            return self.raw.write(data)
        return len(data)


def secure_output() -> None:
    """Let prints succeed if a stream is closed or cannot show a character, or if stderr takes no more."""
    if sys.stderr and sys.stderr is sys.__stderr__:  # not that of a notebook
        raw = getattr(sys.stderr.buffer, "raw", sys.stderr.buffer)  # python -u has no buffer in between
        lossy = io.BufferedWriter(LossyFile(raw))
        sys.stderr = io.TextIOWrapper(lossy, sys.stderr.encoding, line_buffering=True)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # closed: the next opened file would get our prints
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's have no encoding
            stream.reconfigure(errors="backslashreplace")  # for what a terminal cannot show


def exit_status(program: Callable[[], object], *errors: type[Exception]) -> int:
    """Run a program. An error that its user can fix ends in one line and status 2.

    These are `errors`, whose messages say what to do, OSError, and too little memory. IPython shows no
    status, so there the line is raised as a CellError.
    """
    secure_output()
    status = 2
    try:
        program()
        sys.stdout.flush()  # now, while a closed pipe can still be caught
        return 0
    except SystemExit as stop:  # argparse has printed the reason
        if not (stop.code and ipython()):
            raise
        pasted = "ipykernel" in Path(sys.argv[0]).name  # its flags are those of the kernel
        raise CellError("stopped: start it with %run" if pasted else "stopped: see --help") from None
    except errors as error:
        message = " ".join(f"error: {error}".split())
        if isinstance(denied := error.__cause__, PermissionError) and denied.filename:  # nothing is damaged
            message = f"error: {denied.filename}: {denied.strerror}. Check the permissions."
    except BrokenPipeError:  # `| head` closed it
        message, status = "stopped: nothing reads the output any more", 128 + 13  # SIGPIPE, not on Windows
    except OSError as error:
        where = error.filename or ("the output" if error.errno and output_fails() else "")
        reason = f"{where}{where and ': '}{error.strerror or error}"
        open_elsewhere = ", and close other programs that use it" * ON_WINDOWS
        message = f"error: {reason}. Check the name, the space and the permissions{open_elsewhere}."
    except KeyboardInterrupt as stop:
        number, hint = stop.args or (signal.SIGINT, "")
        message, status = f"stopped by {signal.Signals(number).name}{hint and ': '}{hint}", 128 + number
    except (RuntimeError, MemoryError) as error:
        if "by peer" in str(error):  # gloo raises it if another process has ended, which says why
            return 1
        if lacks_memory(error):
            message = "error: out of memory. Lower --batch_size, or the layers' --l1_size and --l2_size."
        elif "find_unused_parameters" in str(error):
            cure = "Give DistributedDataParallel in train.py find_unused_parameters=True."
            message = f"error: the net did not use all of its weights in a training step. {cure}"
        else:
            raise
    if ipython():
        raise CellError(printable(message))
    try:
        sys.stdout.flush()
    except OSError:  # it is closed or full, and Python flushes it again at exit
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if is_first_to_fail():
        print(printable(message), file=sys.stderr, flush=True)
    return status


def output_fails() -> bool:
    """Whether stdout takes no more. What was written before may be lost or waiting, so it writes a line."""
    with suppress(OSError):
        print(flush=True)
        return False
    return True


def lacks_memory(error: Exception) -> bool:
    """Whether an error says so: Python's, torch's, or those of CUDA and its libraries."""
    texts = "can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED", "unable to find an engine"
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error) for text in texts)


def is_first_to_fail() -> bool:
    """Whether this process is the one of its torchrun job that says why the job ends."""
    rank = os.environ.get("RANK", "0")
    if not dist.is_initialized():  # each has the same reason
        return rank == "0" or "MASTER_ADDR" not in os.environ
    with suppress(Exception):  # rank 0 may have ended
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(*address, timeout=timedelta(seconds=5)).add("failed processes", 1) == 1
    return rank == "0"


def printable(text: str) -> str:
    """Text with its control characters escaped, which else could rewrite what the terminal shows."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def display_width(text: str) -> int:
    """Columns of a text on a terminal: two for a wide character, none for one that joins others."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def shorten(name: str) -> str:
    """A class name in at most MAX_NAME columns."""
    name = printable(name[: 2 * MAX_NAME])
    while display_width(name) > MAX_NAME:
        name = name.rstrip("…")[:-1] + "…"
    return name
