import re

from conftest import ROOT

import compare
import evaluate
import sweep
import train

README = (ROOT / "README.md").read_text()
PARSE = {
    "train": train.parse_config,
    "evaluate": evaluate.parse_args,
    "compare": compare.parse_args,
    "sweep": sweep.parse_args,
}


def test_every_command_in_the_readme_is_understood():
    commands = re.findall(r"(?:python|torchrun.*?) (train|evaluate|compare|sweep)\.py ?([^`\n]*)", README)
    assert len(commands) >= 12 and {program for program, _ in commands} == set(PARSE)
    for program, line in commands:
        arguments = line.split()
        if "--help" in arguments or "--resume" in arguments:
            continue
        PARSE[program](arguments)


def test_every_flag_in_the_readme_exists():
    flags = set(re.findall(r"--(?:no-)?([a-z0-9_]+)", README)) - {"help"}
    known = {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint"}  # torchrun's
    known |= set(train.Config.__dataclass_fields__) | set(vars(evaluate.parse_args(["model.pt"])))
    known |= set(vars(compare.parse_args(["runs/001"]))) | set(vars(sweep.parse_args([])))
    assert flags <= known


def test_code_that_runs_an_exported_model_keeps_no_gradients():
    """Of 10,000 images they need 0.9 GB, and `scores.numpy()` would fail."""
    blocks = re.findall(r"\n\n((?: {4}.*\n|\n(?= {4}))+)", README)
    blocks = [block for block in blocks if re.search(r"= model\(", block)]
    assert len(blocks) == 3
    for block in blocks:
        assert "    with torch.inference_mode():\n        logits = model(" in block
