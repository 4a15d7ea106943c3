"""A fake of train.py in the tests of sweep.py: the same files, no training, 0.1 s a run.

acc is 100 * lr + epoch, wrong is 100 - acc. A run with an lr above 1 fails. `starts` lists every start.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--run_dir", type=Path, required=True)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--lr", type=float, default=0.5)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument(
    "--pause", type=float, default=os.environ.get("PAUSE", "0.02"), help="seconds an epoch takes"
)
parser.add_argument("--data_dir", default="data")
parser.add_argument("--device")
args = parser.parse_args()

with open(args.run_dir.parent / "starts", "a") as file:
    file.write(f"{args.run_dir.name} {os.getpid()} {args.resume} {args.lr} {args.data_dir} {args.device}\n")
if args.lr > 1:
    sys.exit("error: the loss is nan")
config, metrics = args.run_dir / "config.json", args.run_dir / "metrics.csv"
if args.resume:
    settings = json.loads(config.read_text())
else:
    settings = {"lr": args.lr, "epochs": args.epochs, "pause": args.pause, "device": args.device}
    args.run_dir.mkdir()
    metrics.write_text("step,epoch,loss,acc,wrong\n")
    config.write_text(json.dumps(settings))
for epoch in range(metrics.read_text().count("\n"), settings["epochs"] + 1):
    time.sleep(settings["pause"])
    acc = 100 * settings["lr"] + epoch
    with open(metrics, "a") as file:
        file.write(f"{epoch},{epoch},,{acc},{100 - acc}\n")
(args.run_dir / "model.pt").touch()
