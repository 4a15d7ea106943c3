"""Decoded pictures, kept in a file that is mapped into memory: they are decoded once, by all cores.

The file holds the pixels of all pictures of a split, uint8 (N, C, size, size), and then the range of values
that became 0..255, two floats (NaN if no picture has more than 8 bits). Its name holds a digest of what it
was made from. It may be deleted at any time.
"""

import hashlib
import io
import math
import multiprocessing
import os
import shutil
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from filelock import FileLock, Timeout
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sources.errors import SourceError, warn
from sources.pictures import decode_picture, full_range

ON_LINUX = sys.platform == "linux"
VERSION = 1  # of the pixels: another one decodes all pictures again
HIDDEN_FOLDER = ".mnist-tables"  # in the folder of the pictures
RANGE = struct.Struct("<dd")
MIN_PER_WORKER = 64  # pictures; for fewer it takes longer to start a process than to decode them
MAX_NAMED = 10  # unreadable files in an error


class UnreadableError(SourceError):
    """Some of `total` pictures cannot be read: the reasons by their names. The first reason is told."""

    def __init__(self, folder: Path, reasons: dict[str, str], total: int):
        self.reasons, self.total = reasons, total
        names = list(reasons)
        named = ", ".join(names[:MAX_NAMED])
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        problem = f"{len(names)} of {total:,} pictures in {folder} cannot be read: {named}{more}"
        super().__init__(f"{problem} ({reasons[names[0]]}). Remove them or save them again.")


def load_pixels(
    folder: Path,
    files: list[str],
    title: str,
    size: int,
    value_range: tuple | None = None,
    keep: bool = True,
) -> tuple[Tensor, tuple[float, float] | None]:
    """The pixels of picture files in a folder, from the cache if they are in it.

    Args:
        folder, files: the data set, and paths relative to it, in the order of the result.
        title: of these files among all of the folder, "train" or "test".
        size: height and width that the pictures are resized to.
        value_range: the values that become 0 and 255 in pictures of more than 8 bits; None to find them.
        keep: whether to write the cache.

    Returns images uint8 (N, C, size, size), and the range that was used, None if all pictures have 8 bits.
    C is 1 if all are grey, else 3. The images are read from the disk when they are used, and must not be
    written to. Raises UnreadableError.
    """
    places = [folder / HIDDEN_FOLDER, *user_cache(folder)]
    stem = "-".join([title, str(size), *map("{:g}".format, value_range or ())])
    name = f"{stem}-{cache_key(folder, files, size, value_range)}.pixels"
    for place in places:
        with suppress(OSError):
            return map_file(place / name, len(files), size)
    decode = partial(decode_files, folder, files, size, value_range)
    problems = []
    for place in places if keep else ():
        try:
            return write_cache(place, stem, name, decode, len(files), size)
        except (OSError, NotImplementedError) as error:  # not writable, or full, or without locks
            problems.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    if problems:
        warn(f"the decoded pictures cannot be kept for the next start ({'; '.join(problems)})")
    memory = io.BytesIO()
    decode(memory)
    return split_content(torch.frombuffer(memory.getbuffer(), dtype=torch.uint8), len(files), size)


def user_cache(folder: Path) -> list[Path]:
    """Where decoded pictures are kept if their folder is not writable; nowhere if the user has no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return [] if root.startswith("~") else [Path(root, "mnist-tables", name)]


def cache_key(folder: Path, files: list[str], size: int, value_range: tuple | None) -> str:
    """A digest of the files' names, sizes and times, and of how they are decoded."""
    digest = hashlib.sha256(repr((VERSION, size, value_range)).encode())
    for file in files:
        status = ()
        with suppress(OSError):  # it has gone; decoding it gives the error
            found = os.stat(folder / file)
            # The time of the last change of any kind, because copying programs can set the other one.
            status = found.st_size, found.st_mtime_ns, found.st_ctime_ns
        digest.update(os.fsencode(file) + repr(status).encode() + b"\0")
    return digest.hexdigest()[:32]


def map_file(path: Path, count: int, size: int) -> tuple[Tensor, tuple[float, float] | None]:
    """Map a file of the cache into memory, as `load_pixels` returns it. Raises OSError."""
    try:
        content = numpy.memmap(path, mode="r")  # read-only, so it may be larger than the memory
    except ValueError as error:  # it is empty
        raise OSError(str(error)) from error
    with warnings.catch_warnings(action="ignore"):  # torch has no read-only tensors
        return split_content(torch.from_numpy(content), count, size)


def split_content(content: Tensor, count: int, size: int) -> tuple[Tensor, tuple[float, float] | None]:
    """The pixels and the range in a file's content. Raises OSError if it has another size."""
    num_bytes = len(content) - RANGE.size
    channels = num_bytes // (count * size**2)
    if channels not in (1, 3) or num_bytes != count * channels * size**2:
        raise OSError("it has another size")
    low, high = RANGE.unpack(bytes(content[num_bytes:].numpy()))
    return content[:num_bytes].view(count, channels, size, size), None if math.isnan(low) else (low, high)


def write_cache(place: Path, stem: str, name: str, decode, count: int, size: int) -> tuple:
    """Write a file of the cache and map it. Another process that wants the same waits. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    (place / ".gitignore").write_text("*\n")  # nobody wants to commit gigabytes of pixels
    if shutil.disk_usage(place).free < count * size**2:
        raise OSError("the disk is full")
    scratch = place / f"{stem}.partial"
    lock = FileLock(place / f"{stem}.lock")  # the system releases it, however this process ends
    try:
        with lock.acquire(timeout=0):
            pass
    except Timeout:
        warn(f"waiting for another process, which writes {scratch}")
    with lock:
        with suppress(OSError):  # written meanwhile
            return map_file(place / name, count, size)
        try:
            with open(scratch, "w+b") as file:
                decode(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, place / name)
        finally:
            scratch.unlink(missing_ok=True)
        for old in place.glob(f"{stem}-{'?' * 32}.pixels"):
            if old.name != name:
                with suppress(OSError):
                    old.unlink()
    return map_file(place / name, count, size)


# ---- Decoding ----
class Pictures(Dataset):
    """Picture files; an item is what `decode_picture` gives, or text: why the file cannot be read."""

    def __init__(self, paths: list[str], size: int, value_range: tuple | None):
        self.paths, self.size, self.value_range = paths, size, value_range

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ndarray | tuple[float, float] | str:
        try:
            return decode_picture(self.paths[index], self.size, self.value_range)
        except SourceError as error:
            cause = error.__cause__ or error
            return str(getattr(cause, "strerror", None) or cause).rstrip(".")


def decode_files(
    folder: Path, files: list[str], size: int, value_range: tuple | None, out: BinaryIO
) -> None:
    """Write the pixels of files, and the range of their values, to a binary file. Raises UnreadableError."""
    channels, plane, found, unreadable = 1, size**2, {}, {}

    def put(index: int, pixels: ndarray | bytes) -> None:  # 1 or 3 planes
        pixels = bytes(pixels)
        out.seek(index * channels * plane)
        out.write(pixels if len(pixels) == channels * plane else pixels * channels)

    def run(indices: Iterable[int], value_range: tuple | None, title: str) -> None:
        nonlocal channels
        paths = [str(folder / files[index]) for index in indices]
        for index, item in zip(indices, decode_all(Pictures(paths, size, value_range), title)):
            if isinstance(item, str):
                unreadable[files[index]] = item
            elif isinstance(item, tuple):
                found[index] = item
            else:
                if len(item) > channels:  # the first picture in colour: give three planes to those before
                    channels = 3
                    for before in reversed(range(index)):
                        out.seek(before * plane)
                        put(before, out.read(plane))
                put(index, item)

    run(range(len(files)), value_range, f"decoding {folder.name}")
    if found and not unreadable:  # pictures of more than 8 bits, now that their range is known
        lows, highs = zip(*found.values())
        value_range = full_range((min(lows), max(highs)))
        run(sorted(found), value_range, f"scaling {folder.name}")
    if unreadable:
        raise UnreadableError(folder, dict(sorted(unreadable.items())), len(files))
    out.seek(len(files) * channels * plane)
    out.write(RANGE.pack(*(value_range or (math.nan, math.nan))))


def decode_all(pictures: Pictures, title: str) -> Iterator[ndarray | tuple[float, float] | str]:
    """Yield the items of a data set in their order, decoded by all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    decode = decode_in_processes if ON_LINUX else decode_in_threads
    with tqdm(total=len(pictures), desc=title, unit=" pictures", disable=None, leave=False) as bar:
        for batch in decode(pictures, cores):
            yield from batch
            bar.update(len(batch))


def decode_in_threads(pictures: Pictures, cores: int) -> Iterator[list]:
    """Yield batches. A process that is not forked would run the caller's script again, and import torch."""
    size = 16 * cores
    with ThreadPool(cores) as pool, warnings.catch_warnings():  # what open_picture ignores, in all threads
        for start in range(0, len(pictures), size):
            yield pool.map(pictures.__getitem__, range(start, min(start + size, len(pictures))))


def decode_in_processes(pictures: Pictures, cores: int) -> Iterable[list]:
    workers = min(cores, len(pictures) // MIN_PER_WORKER)
    if multiprocessing.current_process().daemon:  # which must not start others
        workers = 0
    # Arrays in a list go through a pipe, so that a small /dev/shm is enough. The loader has its own
    # generator, because drawing from torch's would change the weights that come later.
    options = {"batch_size": 16, "collate_fn": list, "generator": torch.Generator()}
    options["multiprocessing_context"] = "fork" if workers else None
    return DataLoader(pictures, num_workers=workers, **options)
