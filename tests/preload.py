"""What the forkserver of programs.py imports before it forks our programs."""

import gc

import conftest  # noqa: F401
import torch._dynamo  # noqa: F401  by the first optimizer
import wandb.cli.cli  # noqa: F401  by `python -m wandb`, which reads what W&B wrote

import compare  # noqa: F401
import evaluate  # noqa: F401
import train  # noqa: F401

gc.freeze()  # else the garbage collector searches all these again in each program, for 0.4 s
