"""evaluate.py beside the four files to copy, without the folder sources."""

import re
import shutil

from conftest import ROOT, assert_one_line_error
from programs import as_python, run

import evaluate
from sources.datasets import DATASET_NAMES

FILES = ("data.py", "model.py", "logging_utils.py", "wandb_run.py", "program.py", "evaluate.py")


def test_evaluate_works_without_sources_and_asks_for_them_if_it_must(finished, small_dir, tmp_path):
    for name in FILES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    flags = ("--data_dir", small_dir, "--predictions", "p.csv")
    result = run(as_python, "evaluate.py", finished / "model.pt", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 501

    result = run(as_python, "evaluate.py", finished / "model.pt", "photo.png", cwd=tmp_path)
    assert_one_line_error(result, "need the folder sources", "Copy it")


def test_help_lists_every_data_set(capsys):
    try:
        evaluate.parse_args(["--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
    listed = re.search(
        r"--dataset DATASET\s+test set: (.*?), or a folder", capsys.readouterr().out, re.DOTALL
    )
    assert tuple(listed[1].replace("\n", " ").replace(" ", "").split(",")) == DATASET_NAMES
