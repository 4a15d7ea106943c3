import platform

import pytest
import torch

import program
import train


def test_hardware_of_a_cpu_run_is_the_cpu_in_a_process_that_has_used_a_gpu(monkeypatch):
    cpu = program.describe_environment()["hardware"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert program.describe_environment("cpu")["hardware"] == cpu
    assert program.describe_environment("cuda:1")["hardware"] == "a GPU"
    assert program.describe_environment()["hardware"] == "a GPU"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # of a CPU that torch does not know
    assert program.describe_environment("cpu")["hardware"] == platform.machine()


def test_gpu_of_a_mac_is_refused():
    with pytest.raises(program.ConfigError, match=r"mps is not available: only cpu and cuda .* Use cpu, or"):
        program.pick_device("mps")


def test_names_of_any_language_are_taken_and_control_characters_are_not():
    for name in ("写真\u3000", "b\u00a0c", "می\u200cخواهم", "👩\u200d🚀"):  # wide space, no break, joiners
        assert train.Config(run_dir=name).run_dir == program.printable(name) == name
    for name in ("\x1b[2J", "a\x9b", "a\u2028b", "\u202etxt.exe", "\udcff"):
        with pytest.raises(program.ConfigError, match="control characters, or bytes that are not UTF-8"):
            train.Config(run_dir=name)
        assert program.printable(name).isprintable()
