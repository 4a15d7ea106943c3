"""What the forkserver of programs.py imports before it forks our programs."""

import gc

import conftest  # noqa: F401
import requests  # noqa: F401  by the first W&B run
import torch._dynamo  # noqa: F401  by the first optimizer
import wandb.sdk.launch  # noqa: F401  by the first W&B run

import compare  # noqa: F401
import evaluate  # noqa: F401
import train  # noqa: F401

gc.freeze()  # else the garbage collector searches all these again in each program, for 0.4 s
