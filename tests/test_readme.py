import re

from conftest import ROOT

import compare
import evaluate
import train

README = (ROOT / "README.md").read_text()


def test_every_command_in_the_readme_is_understood():
    commands = re.findall(r"python (train|evaluate|compare)\.py ?([^`\n]*)", README)
    parse = {"train": train.parse_config, "evaluate": evaluate.parse_args, "compare": compare.parse_args}
    assert len(commands) >= 5
    for program, line in commands:
        arguments = line.split()
        if "--help" in arguments or "--resume" in arguments:
            continue
        parse[program](arguments)


def test_every_flag_in_the_readme_exists():
    flags = set(re.findall(r"--([a-z0-9_]+)", README)) - {"help"}
    known = set(train.Config.__dataclass_fields__) | set(vars(evaluate.parse_args(["model.pt"])))
    known |= set(vars(compare.parse_args(["runs/001"])))
    assert flags <= known
