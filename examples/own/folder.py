"""A training function for `regrow compare` on images in one folder per class.

Expects images/train/CLASS/ and images/test/CLASS/. Adapt FOLDER, SIZE and the training to your
data. Images are read once, and kept in memory as bytes.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder

FOLDER, SIZE, BATCH, RATE = Path("images"), 64, 64, 0.004


@cache
def load(split: str) -> tuple[Tensor, Tensor]:
    """Return a split's images, uint8 [N, 3, SIZE, SIZE], and their classes [N]."""
    found = ImageFolder(str(FOLDER / split))
    images = [np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image, _ in found]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(found.targets)


def scaled(images: Tensor, device: str) -> Tensor:
    """Scale bytes to the range of about -2 to 2."""
    return (images.to(device).float() - 120) / 60


def augmented(images: Tensor) -> Tensor:
    """Flip each image with probability 0.5, and shift the whole batch by up to 4 pixels."""
    images = torch.where((torch.rand(len(images)) < 0.5).view(-1, 1, 1, 1), images.flip(3), images)
    return images.roll([*torch.randint(-4, 5, (2,)).tolist()], (2, 3))


def train(model: nn.Module, budget: Any, seed: int) -> dict[str, Any]:
    """Train a network in place for a budget of epochs (0: only evaluate), and return its accuracy.

    By the losses and learning rates of each epoch the report judges whether the training converged.
    """
    torch.manual_seed(seed)
    images, labels = load("train")
    losses: list[float] = []
    rates: list[float] = []
    if budget.epochs:
        optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
        steps = budget.epochs * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
        model.train()
        for _ in range(budget.epochs):
            total = 0.0
            rates.append(schedule.get_last_lr()[0])
            for part in torch.randperm(len(images)).split(BATCH):
                outputs = model(scaled(augmented(images[part]), budget.device))
                optimiser.zero_grad()
                loss = cross_entropy(outputs, labels[part].to(budget.device))
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(part)
            losses.append(total / len(images))
    told = {"training_loss": losses, "learning_rate": rates}
    return {"accuracy": score(model, budget.device), **told}


def score(model: nn.Module, device: str) -> float:
    """Return the share of correctly classified test images."""
    images, labels = load("test")
    model.eval()
    with torch.no_grad():
        answers = [model(scaled(part, device)).argmax(1).cpu() for part in images.split(256)]
    return (torch.cat(answers) == labels).float().mean().item()
