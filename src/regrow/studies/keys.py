"""The keys of a study file, with a line on what each says.

The one list of them: a study is checked by it, and its reference and its JSON schema are made of
it. Keys of arms stand with arms (``jobs.arms``, ``jobs.trials``); fields of recipes and options of
data are those of their dataclasses.
"""

from collections.abc import Mapping

# Of a study --------------------------------------------------------------------------------

AXES: Mapping[str, str] = {
    "data": "the data sets: a name, a mapping with options, or a list of these",
    "models": "the networks: a name, a mapping with arguments, or a list of these",
    "methods": "the pruning methods, each with how much it removes",
    "arms": "the retraining regimes",
    "seeds": "how many seeds (0, 1, ...), or a list of them; 5 unless given",
    "recipe": "how networks are trained: a name, or fields that differ from one",
    "task": "what is learnt, for data that do not say it themselves",
    "budgets": "how long the unpruned network trains: numbers of epochs, or factors of the "
    "recipe's such as 0.5x; each row is there once for each",
    "rounding": "what shares and equal FLOPs are rounded down to: whole epochs unless given, or "
    "updates, with a last epoch in part",
}
EACH: Mapping[str, str] = {  # keys of each experiment
    **AXES,
    "backbone": "the experiment on whose networks others are built, such as detectors",
}
KEYS: Mapping[str, str] = {
    "name": "the study's name, under which its report is written; the file's unless given",
    "title": "the head of its report",
    **EACH,
    "margin": "below which difference arms count as equivalent; the metric's own unless given",
    "reference": "the method that each other is compared with, by its label",
    "experiments": "several of these in one study, each with what differs from the keys beside it",
}

# Of a method, and of a model ------------------------------------------------------------

_PARTS = {
    "strength": "of its penalty, in place of the method's own",
    "criterion": "another criterion than its own",
    "allocation": "another allocation than its own",
    "scope": "the kinds of groups that it prunes: one, a list, or all",
    "normalise": "how scores of groups are put on one scale",
}
_TREATED = {
    "pretrained": "whether what it does while a network trains begins at the unpruned network",
    "lr": "the learning rate of that training, in place of the recipe's",
}
METHOD_KEYS: Mapping[str, str] = {
    "name": "the method",
    "label": "its name in tables; needed where one method stands twice",
    "sparsity": "the share of units that is removed, in [0, 1), or a list",
    "target": "a published architecture of the method, or a list of them",
    "shares": "the removed share of each group in turn",
    "multiple_of": "how many channels of each layer stay is a multiple of this, or all of them",
    **_PARTS,
    **_TREATED,
    "rounds": "in how many rounds it prunes",
    "ticket": "the arm that is trained between rounds, or none",
    "from": "whose networks it takes its pattern from; the row's own unless said",
}
SOURCE_KEYS: Mapping[str, str] = {
    "model": "the network, as in models",
    "data": "the data set, as in data",
    "method": "the method that pruned it",
    "recipe": "the recipe that trained it",
}
SOURCE_METHOD_KEYS: Mapping[str, str] = {"name": METHOD_KEYS["name"], **_PARTS, **_TREATED}
MODEL_KEYS: Mapping[str, str] = {
    "name": "a registered network, or one by its origin; further keys are its arguments",
    "label": "its name in tables",
    "weights": "trained weights to begin with: a path, published, or random for none",
    "trained_epochs": "how long these were trained, for the report",
}


# Of a study whose networks a function of one's own trains ----------------------------------

OWN_KEYS: Mapping[str, str] = {
    "train": "the function: file.py:function, called with a model, a budget and a seed",
    "metric": "what it returns that decides: a name, or a mapping",
    "budget": "what the whole network's training spends: a number of epochs, or one of steps, "
    "samples or flops",
    "budgets": "several of these in one study: numbers of epochs, or factors of it such as 0.5x",
    "models": "the network",
    "methods": "methods that cut it, each with an amount",
    "small": "folders of networks that `regrow shrink` cut",
    "arms": "the retraining regimes: each a start and a budget",
    "uniform": "whether to train the same network at uniform widths of the same cost, too",
    "rivals": "other networks that are trained from scratch",
    "examples": "the data that criteria by gradients or activations look at: folder:PATH, npz:FILE",
    "seeds": "how many seeds (0, 1, ...), or a list of them; 3 unless given",
}
OWN_MODEL_KEYS: Mapping[str, str] = {
    "network": "file.py:build, package.module:build, timm/NAME, torchvision/NAME, hf/NAME",
    "input": "what it takes, such as 1x3x32x32",
    "weights": "a path of trained weights, or published",
    "set": "arguments",
    "keep": "modules that stay whole",
    "label": "its name in tables",
}
RIVAL_KEYS: Mapping[str, str] = {
    **{key: OWN_MODEL_KEYS[key] for key in ("network", "input", "set", "label")},
    "budget": "equal-epochs (unless given) or equal-flops",
    "cap": "of equal FLOPs: the most that the budget is stretched by",
    "vary": "the argument of the network itself that is made less, to the cost of the cut one",
}
METRIC_KEYS: Mapping[str, str] = {
    "name": "its name among what the function returns",
    "better": "higher or lower",
    "margin": "below which difference networks count as equivalent",
    "num_test": "how many examples it is measured on",
    "chance": "what a network scores that has learnt nothing",
}
