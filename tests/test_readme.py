import re

from conftest import ROOT

import evaluate
import train

README = (ROOT / "README.md").read_text()


def test_every_command_in_the_readme_is_understood():
    commands = re.findall(r"python (train|evaluate)\.py ?([^`\n]*)", README)
    assert len(commands) >= 5
    for program, line in commands:
        arguments = line.split()
        if "--help" in arguments or "--resume" in arguments:
            continue
        train.parse_config(arguments) if program == "train" else evaluate.parse_args(arguments)


def test_every_flag_in_the_readme_exists():
    flags = set(re.findall(r"--([a-z0-9_]+)", README)) - {"help"}
    known = set(train.Config.__dataclass_fields__) | set(vars(evaluate.parse_args(["model.pt"])))
    assert flags <= known
