"""The programs that train.py is measured against, rewritten from their descriptions with their own settings.

Each is a generator: it trains one epoch and yields the seconds that took, those its table took (0 where it
has none) and the wrong guesses on the test set. `data_dir` holds MNIST in torchvision's layout.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

Epoch = tuple[float, float, int]  # training seconds, table seconds, wrong guesses


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def block(channels: int, filters: int, kernel: int) -> list[nn.Module]:
    padded = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    return [padded, nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]


def tutorial_layers() -> list[nn.Module]:
    return [*block(1, 32, 5), *block(32, 64, 5), nn.Flatten(), nn.Linear(7 * 7 * 64, 10)]


def tutorial(
    data_dir: str, device: torch.device, seed: int, epochs: int, wandb_dir: Path | None
) -> Iterator[Epoch]:
    """The W&B tutorial: fp32, batch 32, images decoded one by one, every loss and a table an epoch logged.

    With `wandb_dir` None nothing is logged, and the table costs nothing. Unlike the original it returns to
    training mode after each evaluation, and its images are uint8, so that they can be seen.
    """
    import wandb

    torch.manual_seed(seed)
    train_set, test_set = (MNIST(data_dir, train, transforms.ToTensor()) for train in (True, False))
    train_loader = DataLoader(train_set, batch_size=32, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=64, num_workers=2)
    model = nn.Sequential(*tutorial_layers()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    settings = {"mode": "disabled"} if wandb_dir is None else {"mode": "offline", "dir": wandb_dir}
    with wandb.init(project="benchmark", settings=wandb.Settings(silent=True), **settings) as run:
        for _ in range(epochs):
            start = now(device)
            model.train()
            for images, labels in train_loader:
                images, labels = images.to(device), labels.to(device)
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log({"loss": loss})
            trained = now(device)

            model.eval()
            guesses, scores = [], []
            with torch.no_grad():
                for images, _ in test_loader:
                    outputs = model(images.to(device))
                    guesses.append(outputs.argmax(1).cpu())
                    scores.append(outputs.softmax(1).cpu())
            guesses, scores = torch.cat(guesses), torch.cat(scores)
            wrong = int((guesses != test_set.targets).sum())

            tested = now(device)
            if wandb_dir is not None:
                columns = ["id", "image", "guess", "truth", *(f"score_{k}" for k in range(10))]
                table = wandb.Table(columns=columns)
                arrays = (t.numpy() for t in (test_set.data, guesses, test_set.targets, scores))
                for i, (image, guess, truth, row) in enumerate(zip(*arrays)):
                    table.add_data(i, wandb.Image(image), guess, truth, *row)
                run.log({"test_predictions": table})
            yield trained - start, now(device) - tested, wrong


def pytorch_example(data_dir: str, device: torch.device, seed: int, epochs: int) -> Iterator[Epoch]:
    """pytorch/examples mnist: two 3x3 convolutions, two linear ones, dropout, Adadelta, falling rate."""
    torch.manual_seed(seed)
    scale = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_set, test_set = (MNIST(data_dir, train, scale) for train in (True, False))
    workers = {"num_workers": 1, "pin_memory": True} if device.type == "cuda" else {}  # as there
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, **workers)
    test_loader = DataLoader(test_set, batch_size=1000, **workers)
    features = [
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
    ]
    head = [nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    model = nn.Sequential(*features, *head).to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(epochs):
        start = now(device)
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
        schedule.step()
        trained = now(device)
        model.eval()
        with torch.no_grad():
            wrong = sum(int((model(x.to(device)).argmax(1).cpu() != y).sum()) for x, y in test_loader)
        yield trained - start, 0.0, wrong


def fast(data_dir: str, device: torch.device, seed: int) -> Iterator[Epoch]:
    """tuomaso/train_mnist_fast: "99 % in 0.76 seconds", one epoch from normalised tensors in memory."""
    torch.manual_seed(seed)
    train_set, test_set = MNIST(data_dir, True), MNIST(data_dir, False)

    def normalised(images: Tensor) -> Tensor:
        return ((images[:, None].float() / 255 - 0.1307) / 0.3081).to(device)

    images, labels = normalised(train_set.data), train_set.targets.to(device)
    test_images, test_labels = normalised(test_set.data), test_set.targets.to(device)
    features = [
        nn.Conv2d(1, 24, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
    ]
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)).to(
        device
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
    steps = -(-len(images) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    start = now(device)
    for picks in torch.randperm(len(images), device=device).split(256):
        loss = F.cross_entropy(model(images[picks]), labels[picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    trained = now(device)
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in test_images.split(1000)])
    yield trained - start, 0.0, int((guesses != test_labels).sum())
