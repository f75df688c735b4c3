"""Handwritten digits (1,347 training and 450 test images [1, 8, 8]), and a plain training loop."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
learnt, judged = order[:1347], order[1347:]


def train(net: nn.Module, epochs: int, lr: float = 0.01, seed: int = 0) -> None:
    """Train a network in place."""
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    net.train()
    for _ in range(epochs):
        for part in learnt[torch.randperm(len(learnt))].split(64):
            optimiser.zero_grad()
            cross_entropy(net(images[part]), labels[part]).backward()
            optimiser.step()
        schedule.step()
    net.eval()


def accuracy_of(net: nn.Module) -> float:
    """Return the share of correctly classified test images."""
    net.eval()
    with torch.no_grad():
        right = net(images[judged]).argmax(1) == labels[judged]
    return right.float().mean().item()


def accuracy(net: nn.Module) -> str:
    """Return the test accuracy as text, in percent."""
    return f"{100 * accuracy_of(net):.1f} %"
