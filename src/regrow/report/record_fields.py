"""The fields of records and cards, with a description of each for the reference."""

from collections.abc import Mapping

# Fields of every record; then of trainings, of prunings, and of a user's training function.
OF_ALL: Mapping[str, str] = {
    "kind": "the kind of the job: train, retrain or prune",
    "spec": "the full request, whose digest with the keys of `inputs` is the record's name",
    "inputs": "keys of the jobs whose results it depends on",
    "tensors": "SHA-256 of the tensors that lie beside it; absent where there are none",
    "parts": "SHA-256 of further files of tensors, by their names",
    "timing": "time, energy and machine, which affect no result: `seconds`, `energy`, "
    "`machine`, `versions`, and the `digest` of these",
}
OF_TRAININGS: Mapping[str, str] = {
    "accuracy": "the score on the test set, in [0, 1]; under the name of the task's metric",
    "loss": "the mean loss on the test set",
    "num_test": "examples of the test set",
    "validation": "scores on the validation split, by name; absent without one",
    "before": "of a training: what the network scored before its first step, by name",
    "unlike": "weights whose random initialisation may differ from that of the network's own code",
    "epochs": "epochs of its own training",
    "samples": "training examples that it used, including repeated ones",
    "training_flops": "FLOPs of its own training; three forward passes per example",
    "history": "a mapping for each epoch: `epoch`, `lr`, `loss`, `seconds`, ... (`regrow report "
    "--epochs` writes them as CSV)",
    "classes": "names of the classes, in the order of the outputs",
    "architecture": "how to build the network: its model, and the cuts that were made",
    "mean": "what inputs are normalised by, for each channel",
    "std": "what inputs are normalised by, for each channel",
    "ratio": "FLOPs of the unpruned network over those of this one, the factor on epochs",
    "capped": "true where the cap of the budget was reached",
    "teacher_flops": "FLOPs of a teacher, which `training_flops` include",
}
OF_PRUNINGS: Mapping[str, str] = {
    "unit": "what was removed: channel, block, weight or filter",
    "sparsity": "the share of units that was removed; of a retraining, the share masked at its end",
    "widths": "units that stay, by the name of their group or parameter",
    "guarded": "groups of which a global threshold would have removed all units",
    "before": "of a pruning: the costs before it (fields below)",
    "after": "the costs after it (fields below)",
    "cost": "with a cost target: the `share` that is left, and how it was measured",
    "images": "the images that a reconstruction used",
}
OF_OWN: Mapping[str, str] = {
    "metrics": "what the training function returned, by name",
    "not_finite": "metrics that it returned as nan or infinity; absent if none",
    "weights": "SHA-256 of the trained weights, which shows whether seeds differ",
    "amount": "its budget, in the unit of `spec`; 0: it was only measured",
    "passes": "forward passes in training mode, with gradients",
    "shape": "the shape of the first training example, without the batch",
    "input": "the shape that costs are counted at, without the batch",
    "unusable": "what is wrong with the training loss or rate that it returned; absent if nothing",
    "beside": "inputs that it was trained with and that `--input` does not name",
    "drawn": "tensors without an initialisation at the smaller size, drawn as in the uncut network "
    "and cut",
}
OF_COSTS: Mapping[str, str] = {
    "parameters": "number of trainable parameters",
    "macs": "multiply-accumulates of one forward pass on one example",
    "flops": "FLOPs of one example as counted in the paper, which define equal FLOPs",
    "caveats": "operations that the counts leave out; absent if none",
}
OF_ENERGY: Mapping[str, str] = {
    "joules": "the job's share of the measured energy",
    "whole_joules": "the energy that the counters measured while it ran",
    "counters": "the names of the counters",
    "unknown": "in place of all these: the reason why the energy is unknown",
}
OF_CARDS: Mapping[str, str] = {
    "network": "the class of the network",
    "origin": "the name that it was given by: file.py:build, timm/NAME, ...",
    "weights": "the source of its weights",
    "inputs": "the input with which costs were counted and latencies measured",
    "asked": "the options: criterion, allocation, amount, ...",
    "whole": "modules that were not pruned, with the reason",
    "caveats": "operations that the counts leave out",
    "parameters": "`before` and `after`",
    "macs": "multiply-accumulates of one example: `before` and `after`",
    "widths": "units of each group: `before` and `after`",
    "speeds": "for each batch size (`batch`): `before` and `after` (seconds: `median`, quartiles "
    "`low` and `high`, `rounds`), `before_bytes` and `after_bytes` (peak memory), `speedup` and "
    "the `forecast` of it (`why`: why there is none), `noisy` where quartiles lie far apart",
    "proof": "`proven`; `error`, the largest difference from the silenced network, and the "
    "`tolerance` of it; `sensitivity`, how far silencing each group moves the output, and the "
    "`least_sensitivity`; `text`",
    "exports": "each exported file: what it takes and by how much its outputs differ",
    "machine": "`device`, `threads`, `torch`",
    "protocol": "how times and memory were measured",
    "date": "the day",
    "version": "of regrow",
}
TABLES: Mapping[str, Mapping[str, str]] = {
    "Every record": OF_ALL,
    "Records of trainings (`train`, `retrain`)": OF_TRAININGS,
    "Records of prunings (`prune`)": OF_PRUNINGS,
    "Records of a user's training function": OF_OWN,
    "Costs, in `before` and `after` of a pruning, and beside a score": OF_COSTS,
    "`timing.energy`": OF_ENERGY,
    "`card.json`": OF_CARDS,
}
