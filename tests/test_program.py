import torch

import program


def test_hardware_of_a_cpu_run_is_the_cpu_in_a_process_that_has_used_a_gpu(monkeypatch):
    cpu = program.describe_environment()["hardware"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert program.describe_environment("cpu")["hardware"] == cpu
    assert program.describe_environment("cuda:1")["hardware"] == "a GPU"
    assert program.describe_environment()["hardware"] == "a GPU"
