"""Studies that use many features, and random changes of their text, values and keys."""

import random
from collections.abc import Iterator
from datetime import date
from typing import Any

import yaml

BASE = """\
name: small
data: {name: digits, subset: 200, seed: 1}
models: [resnet-20, {name: vgg, plan: [8, M, 16], label: tiny}]
methods:
  - {name: l1-filter, sparsity: [0.3, 0.6], scope: [conv]}
  - {name: network-slimming, sparsity: 0.5, strength: 1e-4}
  - {name: lottery, rounds: 3, sparsity: 0.2, ticket: late}
  - {name: guided-pruning, sparsity: 0.5, from: {model: vgg-16, recipe: {epochs: 2}}}
arms: [unpruned, fine-tune, {name: late, start: rewound, epoch: 1}, {name: scratch-b, cap: 3}]
seeds: 3
recipe: {name: cifar, epochs: 20, lr: 0.1, drop_at: [0.5, 0.75], schedule: drops}
margin: 0.3
"""

# Tuned arms, cost targets, and most fields of recipes.
WIDE = """\
title: Wide
reference: l1
data:
  - {name: "folder:some/images", label: mine, size: 32, validation: 0.1, on_error: skip}
  - digits
models: [resnet-20, {name: resnet-56, width: 0.5}, {name: "nets.py:build", depth: 3}]
methods:
  - {name: l1, macs: [0.5, 0.3], normalise: group}
  - {name: magnitude, allocation: "2:4", label: half}
  - {name: soft-filter, sparsity: 0.3, pretrained: true, lr: 0.01}
  - {name: magnitude, sparsity: [0.5, 0.9], rounds: 4, ticket: none}
  - {name: l1-filter, target: vgg-16-a}
arms:
  - unpruned
  - Fine_Tune
  - {name: fine-tune-10x, tune: {last_rates: [1, 10, 30]}}
  - {name: long, like: scratch-b, budget: pipeline, share: 0.5, cap: 3}
  - {name: cosine, start: inherited, epochs: 4, lr: 0.01, schedule: cosine}
  - {name: taught, like: scratch-b, objective: {name: distillation, temperature: 4, weight: 0.9}}
  - {name: sparse, like: fine-tune, treatment: network-slimming, strength: 1.0e-4}
seeds: [1, 2]
recipe: {name: cifar, optimiser: {name: adamw, beta1: 0.8}, lr: 0.002, schedule: cosine,
  decayed: weights, clip: 1.0, ema: 0.9, mixup: 0.2, cutout: 8, warmup_share: 0.1, batch: 32,
  augmentation: flip, objective: {name: cross-entropy, label_smoothing: 0.1}, precision: auto}
"""
SEVERAL = """\
name: several
seeds: 1
budgets: [2, 0.5x]
models: vgg-16
experiments:
  - {data: digits, methods: {name: l1-filter, sparsity: 0.5}, recipe: {epochs: 2}}
  - {data: cifar10, models: {name: resnet-20, label: r}, methods: {name: random, latency: 0.5}}
"""
ON_BACKBONE = """\
backbone:
  data: digits
  models: imagenet-resnet-34
  methods: {name: l1-filter, target: [resnet-34-a]}
  recipe: imagenet
data: voc-shapes
detector: {name: small, short_side: 128}
recipe: {epochs: 7}
seeds: 2
arms: [unpruned, prune-c, prune-d, scratch-e, scratch-b]
"""
BASES = {"base": BASE, "wide": WIDE, "several": SEVERAL, "on a backbone": ON_BACKBONE}

PIECES = (
    *("[", "]", "{", "}", ": ", "- ", "&a ", "*a", "<<: ", "!!int ", "!!set ", "? ", "|", ">"),
    *("null", "true", "-1", "0", "1e999", ".nan", ".inf", "1e-400", "9" * 30, "9" * 5000, "0x1f"),
    *("2021-13-45", "12:99:99", '"\\0"', '"\\ud800"', "{}", "[]", "{name: {}}", "''", "\u00e9"),
    *("1000000000", "resnet-20", "l1-filter", "random", "\n", "  ", "#", "%", "@", "`", "\0"),
)  # fmt: skip


VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 0.5, 1e308, 10**18, float("nan"), float("inf"), "", "x" * 3000, b"x"),
    *([], {}, {"name": {}}, {"name": "cifar"}, [[]], [1, "a", None], {1: 2}, "conv", "random"),
    *(date(2021, 1, 1), "resnet-20", "vgg-16", "l1-filter", "cifar", "digits", "hf:", "\u00e9\n"),
)


def changed_text(rng: random.Random, base: str = BASE) -> bytes:
    """Change the text of a study in one or two places."""
    text = base
    for _ in range(rng.randint(1, 2)):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice((0, 0, 1, 2, 5, 20)))
        other = rng.randrange(len(text))
        copied = text[other : other + rng.randrange(40)]
        piece = rng.choice((rng.choice(PIECES), copied, chr(rng.randrange(0x2FFF))))
        text = text[:start] + piece + text[end:]
    return text.encode("utf-8", errors="surrogatepass")


def changed_values(rng: random.Random, base: str = BASE) -> bytes:
    """Replace one or two values of a study, whole branches included."""
    study = yaml.safe_load(base)
    for _ in range(rng.randint(1, 2)):
        inner = study
        while True:
            key: Any = (
                rng.choice([*inner]) if isinstance(inner, dict) else rng.randrange(len(inner))
            )
            if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
                inner = inner[key]
                continue
            value = rng.choice(VALUES)
            inner[key] = [value, inner[key]] if rng.random() < 0.2 else value
            break
    return yaml.safe_dump(study).encode()


def changed_keys(rng: random.Random, base: str = BASE) -> bytes:
    """Rename, leave out or move a key of a study, or of a mapping within it."""
    study = yaml.safe_load(base)
    mappings = [*_mappings(study)]
    inner, other = rng.choice(mappings), rng.choice(mappings)
    key = rng.choice([*inner])
    value = inner.pop(key)
    change = rng.randrange(4)
    if change == 0:
        inner[key[:-1] or "x"] = value
    elif change == 1:
        other[key] = value
    elif change == 2:
        other[rng.choice([*other] or [key])] = value
    return yaml.safe_dump(study).encode()


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every non-empty mapping of a study, outermost first."""
    if isinstance(value, dict):
        if value:
            yield value
        value = [*value.values()]
    for part in value if isinstance(value, list) else ():
        yield from _mappings(part)
