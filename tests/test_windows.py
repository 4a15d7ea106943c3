"""Windows, as far as Linux can act like it. Most of what is imitated was seen there, with Python 3.13."""

import errno
import fcntl
import io
import os
import sys
from pathlib import Path

import pandas as pd
from conftest import assert_one_line_error
from PIL import Image
from programs import ROOT, run_python

import compare
import program
from program import quoted, secure_output, write_file
from sources import cache, folders

UNGUARDED = """
import multiprocessing, os
from pathlib import Path
from sources.cache import load_pixels
multiprocessing.set_start_method("spawn", force=True)
os.sched_getaffinity = lambda _: {0, 1}
print(len(load_pixels(Path.cwd(), [f"{i}.png" for i in range(200)], "train", 4)[0]))
"""


def test_files_are_written_where_directories_and_what_is_read_cannot_be_flushed(tmp_path, monkeypatch):
    open_, fsync, replace, refused = os.open, os.fsync, os.replace, []

    def windows_open(path, *arguments):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, *arguments)

    def windows_fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(descriptor)

    def windows_replace(source, target):
        if not refused:  # another program reads `target` at the moment
            refused.append(target)
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(program, "ON_WINDOWS", True, raising=False)
    for name, function in {"open": windows_open, "fsync": windows_fsync, "replace": windows_replace}.items():
        monkeypatch.setattr(os, name, function)
    write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and os.listdir(tmp_path) == ["file"]


def test_printed_commands_are_quoted_as_cmd_and_powershell_read_them(monkeypatch):
    monkeypatch.setattr(program, "ON_WINDOWS", True)
    assert quoted(r"runs\001@5") == r"runs\001@5"
    assert quoted(r"C:\my runs\a") == r'"C:\my runs\a"'
    assert quoted("C:\\R&D\\") == r'"C:\R&D"'


def test_stderr_is_written_by_pythons_own_file(monkeypatch):
    """A terminal on Windows takes text in another way than bytes by its descriptor: bars became signs."""

    class Console(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            shown.append(bytes(data))
            return len(data)

    shown = []
    for name in ("stderr", "__stderr__"):
        stream = io.TextIOWrapper(io.BufferedWriter(Console()), "utf-8")
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    secure_output()
    print("██▌", file=sys.stderr)
    assert b"".join(shown).decode() == "██▌\n"


def test_suspects_have_plain_line_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "linesep", "\r\n")  # pandas writes it, and text files there double its \r
    table = tmp_path / "p.csv"
    pd.DataFrame({"id": [0, 1], "truth": [0, 1], "score_0": [0.9, 0.8], "score_1": [0.1, 0.2]}).to_csv(
        table, index=False
    )
    out = tmp_path / "suspects.csv"
    args = [str(table), "--no_images", "--out", str(tmp_path / "page.html"), "--suspects", str(out)]
    compare.compare(compare.parse_args(args))
    assert out.read_bytes() == b"id,truth,suggested,margin\n1,1,0,-0.6\n0,0,,0.8\n"


def test_order_of_pictures_does_not_depend_on_the_system(tmp_path, monkeypatch):
    (tmp_path / "train/a").mkdir(parents=True)
    for name in (r"sub\1.png", "sub-2.png"):  # as relpath gives a path there
        (tmp_path / "train/a" / name).touch()
    layout = folders.Layout(tmp_path, None, tmp_path / "train", [])
    monkeypatch.setattr(folders.os, "sep", "\\")
    found, _ = folders.list_files(layout, tmp_path / "train", ["a"])
    assert [Path(name).as_posix() for name in found] == ["train/a/sub-2.png", "train/a/sub/1.png"]


def test_pictures_are_decoded_by_threads_where_processes_cannot_be_forked(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(200)]
    for i, name in enumerate(names):
        Image.new("L", (5, 5), i).save(tmp_path / name)
    files = names, "train", 4, None, False
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with monkeypatch.context() as patch:
        patch.setattr(cache, "ON_LINUX", False)
        patch.setattr(cache, "DataLoader", None)
        images, _ = cache.load_pixels(tmp_path, *files)
    assert images[:, 0, 0, 0].tolist() == list(range(200)) and images.equal(
        cache.load_pixels(tmp_path, *files)[0]
    )


def test_script_without_a_guard_decodes_pictures_whatever_the_start_method(tmp_path):
    for i in range(200):
        Image.new("L", (5, 5), i).save(tmp_path / f"{i}.png")
    (tmp_path / "script.py").write_text(UNGUARDED)
    result = run_python("script.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "200\n")


def test_sweep_says_what_it_needs(tmp_path):
    code = "import sys; sys.modules['fcntl'] = None; import sweep"
    result = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert_one_line_error(result, "sweep.py needs Linux or macOS", "WSL")
