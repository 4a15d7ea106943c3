"""The programs in a Jupyter kernel, as cells of a notebook: the tutorial's, and cells that go wrong."""

import json
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TUTORIAL = ROOT / "docs/tutorial.ipynb"
QUICK = "--epochs 1 --augment 0 --l1_size 4 --l2_size 8"
INTERRUPT = """import os, signal, threading, time
from pathlib import Path

def interrupt():
    while not Path("stopped/predictions/epoch-001.csv").exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
%run train.py --epochs 999 --run_dir stopped"""

# The kernel keeps the frames of an interrupted call, and with them the bar of its epoch.
TWO_BARS = """from types import SimpleNamespace
from program import progress

log, batches = SimpleNamespace(rank=0, world_size=1, latest_loss=1.0), [(None, [0])]
interrupted = progress(batches, 1, "interrupted", log)
next(interrupted)
list(progress(batches, 1, "next", log))"""


def execute(cells: list, folder: Path) -> list:
    """Run code cells in a new kernel that starts in `folder`. Returns the cells with their outputs."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=where).execute()
    return notebook.cells


def printed(cell, stream: str) -> str:
    """What a cell shows of a stream, after the carriage returns of a progress bar."""
    text = "".join(output.text for output in cell.outputs if output.get("name") == stream)
    return "".join(line.rsplit("\r", 1)[-1] + "\n" for line in text.split("\n")).strip()


def check_in_browser(html: str, folder: Path) -> None:
    """The page in its frame is drawn, and its buttons work there too."""
    from test_page import chromium

    (folder / "output.html").write_text(f"<!doctype html><meta charset=utf-8><body>{html}")
    browser = chromium()
    try:
        browser.get((folder / "output.html").as_uri())
        browser.switch_to.frame(browser.find_element("tag name", "iframe"))
        deadline = time.monotonic() + 30
        while not browser.execute_script("return document.documentElement.hasAttribute('data-ready')"):
            assert time.monotonic() < deadline
        browser.execute_script("for (const chip of document.querySelectorAll('button')) chip.click()")
        browser.switch_to.default_content()
        assert [entry for entry in browser.get_log("browser") if "Uncaught" in entry["message"]] == []
    finally:
        browser.quit()


@pytest.fixture
def clone(tiny_dir, tmp_path) -> Path:
    """A copy of this repository, with a few digits as its data."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for folder in ("page", "sources"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "docs").mkdir()
    shutil.copy(TUTORIAL, tmp_path / "docs")
    (tmp_path / "data").symlink_to(tiny_dir)
    return tmp_path


@pytest.mark.first
def test_tutorial_runs_and_shows_the_page(clone, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    cells = nbformat.read(TUTORIAL, as_version=4).cells
    cells = [cell for cell in execute(cells, clone / "docs") if cell.cell_type == "code"]
    for cell in cells:
        assert printed(cell, "stderr") == "", cell.source
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source

    summaries = {
        path.parent.name: json.loads(path.read_text()) for path in clone.glob("runs/*/summary.json")
    }
    wrong = {name: summary["wrong"] for name, summary in summaries.items()}
    assert sorted(wrong) == ["001", "large", "small"] and summaries["large"]["finished"] == 3
    small, large, evaluated = (
        next(printed(cell, "stdout") for cell in cells if start in cell.source)
        for start in ("--run_dir runs/small", "--run_dir runs/large", "%run evaluate.py")
    )
    assert f"done  mnist-format: {wrong['small']} of 100 images wrong" in small
    assert "next  %run evaluate.py runs/large/model.pt\n      %run compare.py runs/large@1" in large
    assert f"wrong     {wrong['large']}\n" in evaluated
    shown = [output.data for cell in cells for output in cell.outputs if output.output_type != "stream"]
    assert any("image/png" in data for data in shown)
    page = next(data["text/html"] for data in shown if "<iframe" in data.get("text/html", ""))
    assert "small@3" in page and "&lt;!doctype html&gt;" in page
    if shutil.which("chromium") and shutil.which("chromedriver"):
        check_in_browser(page, clone)
    assert any(data["text/plain"].startswith(f"({wrong['001']}, ") for data in shown)


def test_tutorial_is_committed_without_outputs():
    cells = [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_what_goes_wrong_in_a_cell_is_one_line_and_the_kernel_goes_on(clone, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    sources = [
        "%run train.py --epochs 0",
        "%run train.py --epoch 3",
        "%run evaluate.py nothing.pt",
        "%run compare.py nothing",
        INTERRUPT,
        "%run train.py --run_dir stopped --epochs 3 --resume",
        f"%run train.py {QUICK} --run_dir whole",
        f"%env WANDB_MODE=offline\n%run -i train.py {QUICK} --run_dir again",
        "%run train.py --help",
        TWO_BARS,
    ]
    cells = [nbformat.v4.new_code_cell(f"{source}\nprint('next line')") for source in sources]
    pasted = (clone / "train.py").read_text()
    cells.append(nbformat.v4.new_code_cell(pasted, metadata={"tags": ["raises-exception"]}))
    cells = execute(cells, clone)
    errors = [[o for o in cell.outputs if o.output_type == "error"] for cell in cells]
    shown = ["\n".join(o["traceback"][0] for o in outputs) for outputs in errors]
    expected = [
        "error: --epochs must be between",
        "stopped: see --help",
        "error: nothing.pt does not exist",
        "error: nothing",
        "stopped by SIGINT: continue with %run train.py --run_dir stopped --resume",
        "error: A resumed run keeps its settings, but --epochs was 999, now 3",
        "",
        "",
        "",
        "",
        "stopped: start it with %run",
    ]
    for text, start, outputs in zip(shown, expected, errors):
        assert text.startswith(start) and "\n" not in text and len(outputs) == bool(start), text
    # argparse prints the reason before it stops.
    assert "unrecognized arguments: --epoch 3" in printed(cells[1], "stderr")
    assert "unrecognized arguments: -f" in printed(cells.pop(), "stderr")
    assert [printed(cell, "stderr") for cell in cells if cell is not cells[1]] == [""] * 9
    assert "epoch 1/1:   0%|" in "".join(o.get("text", "") for o in cells[6].outputs)  # the progress bar
    assert printed(cells[6], "stdout").splitlines()[1].startswith("epoch 1/1")  # and nothing left of it
    whole, again = (clone / name / "predictions/epoch-001.csv" for name in ("whole", "again"))
    assert whole.read_bytes() == again.read_bytes()
    assert list(clone.glob("again/wandb/offline-run-*"))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(cells[8], "stdout"))  # Python 3.14 colors it
    assert "--epochs int" in plain
    bars = "".join(o.get("text", "") for o in cells[9].outputs)
    assert "next:   0%" in bars and "\x1b[A" not in bars  # a notebook cannot move the cursor up
