"""evaluate.py and publish.py alone, and beside the files that they need, without the folder sources."""

import re
import shutil
from dataclasses import fields

import pytest
import torch
from conftest import ROOT, assert_one_line_error
from programs import as_python, run

import evaluate
import train
from model import Classifier, ConvNet, export_model, load_exported
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
    shutil.copytree(ROOT / "sources", tmp_path / "sources")
    code = "import evaluate, sys; sys.modules['scipy'] = None; sys.exit(evaluate.main())"
    result = run(as_python, "-c", code, finished / "model.pt", "photo.png", cwd=tmp_path)
    assert_one_line_error(result, "scipy", "requirements.txt")


@pytest.mark.parametrize("program", ["evaluate.py", "publish.py"])
def test_program_that_is_copied_alone_names_the_files_that_it_needs(program, tmp_path):
    shutil.copyfile(ROOT / program, tmp_path / program)
    result = run(as_python, program, "nowhere", cwd=tmp_path)
    assert_one_line_error(result, "is missing", f"{program} needs ")
    for name in set(re.findall(r"\w+\.py", result.stderr)) - {program}:
        shutil.copyfile(ROOT / name, tmp_path / name)
    assert_one_line_error(run(as_python, program, "nowhere", cwd=tmp_path), "nowhere")


def test_model_of_a_data_set_that_sources_reads_asks_for_sources(finished, tmp_path):
    metadata = load_exported(finished / "model.pt")[1] | {"dataset": "fashion_mnist"}
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    content = export_model(Classifier(ConvNet(l1_size=4, l2_size=4), 0.1, 0.3), images, metadata)
    (tmp_path / "model.pt").write_bytes(content["model.pt"])
    for name in FILES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    result = run(as_python, "evaluate.py", "model.pt", cwd=tmp_path)
    assert_one_line_error(result, "Only MNIST in ", "Copy sources/, or edit load_split")


def test_help_lists_every_data_set(capsys):
    try:
        evaluate.parse_args(["--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
    listed = re.search(
        r"--dataset DATASET\s+test set: (.*?), or a folder", capsys.readouterr().out, re.DOTALL
    )
    assert tuple(listed[1].replace("\n", " ").replace(" ", "").split(",")) == DATASET_NAMES
    (listed,) = (field.metadata["help"] for field in fields(train.Config) if field.name == "dataset")
    assert listed == ", ".join((*DATASET_NAMES, "FOLDER"))
