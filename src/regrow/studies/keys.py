"""The keys of a study file, with a line of description for each.

This is the only list of them: studies are checked against it, and the reference and the JSON schema
are generated from it. Keys of arms are in ``jobs.arms`` and ``jobs.trials``; fields of recipes and
options of data are those of their dataclasses.
"""

from collections.abc import Mapping

# Of a study --------------------------------------------------------------------------------

AXES: Mapping[str, str] = {
    "data": "the data sets: a name, a mapping with options, or a list of these",
    "models": "the networks: a name, a mapping with arguments, or a list of these",
    "methods": "the pruning methods, each with how much it removes",
    "arms": "the ways of retraining: names, or mappings",
    "seeds": "the number of seeds (0, 1, ...), or a list of them; default 5",
    "recipe": "the training settings: a name, or a mapping that changes fields of a named recipe",
    "task": "the learning task, where it does not follow from the data",
    "budgets": "several training lengths of the unpruned network: numbers of epochs, or factors of "
    "the recipe's such as 0.5x; every row is run once per budget",
    "rounding": "shares of a budget and equal FLOPs are rounded down to whole epochs (default), or "
    "to updates, which trains a part of the last epoch",
}
EACH: Mapping[str, str] = {  # keys of each experiment
    **AXES,
    "backbone": "the experiment whose networks others, such as detectors, are built on",
}
KEYS: Mapping[str, str] = {
    "name": "the study's name, and that of its report's folder; default: the file's name",
    "title": "the title of its report",
    **EACH,
    "margin": "the difference below which arms count as equivalent; default: the metric's own",
    "reference": "the label of the method that every other is compared with",
    "experiments": "a list of experiments; each has only the keys that differ from the study's",
}

# Of a method, and of a model ------------------------------------------------------------

_PARTS = {
    "strength": "the strength of its penalty, in place of the method's own",
    "criterion": "another criterion (score) in place of the method's own",
    "allocation": "another allocation in place of the method's own",
    "scope": "the kinds of groups that it prunes: one, a list, or all",
    "normalise": "how scores of different groups are made comparable",
}
_TREATED = {
    "pretrained": "for methods that change training: whether they start from the trained unpruned "
    "network",
    "lr": "the learning rate of that training, in place of the recipe's",
}
METHOD_KEYS: Mapping[str, str] = {
    "name": "the method",
    "label": "its name in tables; needed if the same method occurs twice",
    "sparsity": "the share of units that is removed, in [0, 1), or a list",
    "target": "a published architecture of the method, or a list of them",
    "shares": "the removed share of each group in turn",
    "multiple_of": "each layer keeps a multiple of this number of channels, or all of them",
    **_PARTS,
    **_TREATED,
    "rounds": "the number of rounds of pruning",
    "ticket": "the arm that is trained between rounds, or none",
    "from": "the networks that it takes its pattern from; default: those of the same row",
}
SOURCE_KEYS: Mapping[str, str] = {
    "model": "the network, as in models",
    "data": "the data set, as in data",
    "method": "the method that pruned it",
    "recipe": "the recipe that trained it",
}
SOURCE_METHOD_KEYS: Mapping[str, str] = {"name": METHOD_KEYS["name"], **_PARTS, **_TREATED}
MODEL_KEYS: Mapping[str, str] = {
    "name": "a registered network, file.py:build, timm/NAME, ...; further keys are its arguments",
    "label": "its name in tables",
    "weights": "trained weights: a path, published, or random for none",
    "trained_epochs": "the number of epochs that these weights were trained for, for the report",
}


# Of a study whose networks the user's own function trains ----------------------------------

OWN_KEYS: Mapping[str, str] = {
    "train": "the function: file.py:function, called with a model, a budget and a seed",
    "metric": "the returned value to compare by: a name, or a mapping",
    "budget": "the length of the unpruned network's training: a number of epochs, or one of steps, "
    "samples or flops",
    "budgets": "several such lengths: numbers of epochs, or factors of the budget such as 0.5x",
    "models": "the network",
    "methods": "the pruning methods, each with an amount",
    "small": "folders of networks that `regrow shrink` wrote",
    "arms": "the ways of retraining: each a start and a budget",
    "uniform": "whether to also train the network with uniformly reduced widths at the same cost",
    "rivals": "other networks that are trained from scratch",
    "examples": "the data for criteria that use gradients or activations: folder:PATH, npz:FILE",
    "seeds": "the number of seeds (0, 1, ...), or a list of them; default 3",
}
OWN_MODEL_KEYS: Mapping[str, str] = {
    "network": "file.py:build, package.module:build, timm/NAME, torchvision/NAME, hf/NAME",
    "input": "the shape of its input, such as 1x3x32x32",
    "weights": "a path of trained weights, or published",
    "set": "arguments of its code",
    "keep": "modules that are not pruned",
    "label": "its name in tables",
}
RIVAL_KEYS: Mapping[str, str] = {
    **{key: OWN_MODEL_KEYS[key] for key in ("network", "input", "set", "label")},
    "budget": "equal-epochs (default) or equal-flops",
    "cap": "for equal FLOPs: the largest factor on the budget",
    "vary": "the argument of the network that is reduced until it costs as much as the pruned one",
}
METRIC_KEYS: Mapping[str, str] = {
    "name": "its name among the values that the function returns",
    "better": "higher or lower",
    "margin": "the difference below which networks count as equivalent",
    "num_test": "the number of test examples",
    "chance": "the score of a network that has learnt nothing",
}
