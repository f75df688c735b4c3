"""The columns of the CSV files of a report, with a description of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from regrow.report.contest_words import ENTRANT_COLUMNS, PAIR_COLUMNS, RANK_COLUMNS
from regrow.report.ledger import COLUMNS as LEDGER_COLUMNS
from regrow.report.rows import BUDGET, ROW_COLUMNS, RUN_COLUMNS, Column
from regrow.report.tuning import COLUMNS as TUNING_COLUMNS
from regrow.report.verdict import VERDICT_COLUMNS

KINDS = {"str": "text", "Int64": "int", "float64": "number", "bool": "True or False"}
ABOUT: Mapping[str, str] = {
    "data": "the data set, by its label",
    "model": "the network, by its label",
    "method": "the pruning method, by its label; empty where nothing is pruned",
    "target": "the target in place of a sparsity: a cost or a published architecture",
    "sparsity": "the requested share of removed units",
    "unit": "what was removed: channel, filter, weight or block",
    "arm": "the way of retraining",
    "start": "the weights that the arm starts from",
    "budget": "the kind of the arm's budget",
    "mean": "mean score over seeds",
    "std": "standard deviation over seeds (n - 1); empty for one seed",
    "n": "number of finished seeds",
    "n_expected": "number of requested seeds",
    "n_failed": "number of failed seeds",
    "n_missing": "number of seeds that have not run",
    "loss": "loss on the test set",
    "parameters": "parameters of the final network",
    "macs": "multiply-accumulates of one example",
    "parameters_kept": "parameters over those of the unpruned network",
    "macs_kept": "MACs over those of the unpruned network",
    "epochs": "epochs of the arm alone",
    "base_epochs": "epochs of the unpruned network's training; 0 if it was trained elsewhere",
    "training_flops": "FLOPs of every training that the row depends on",
    "samples": "training examples used by every training that the row depends on",
    "emptied": "layers that would have lost all units, and kept one",
    "fairness": "the row's training budget in words",
    "num_test": "examples of the test set",
    "chance": "the score of the metric's baseline on the test set",
    "group": "the cell whose arms are compared with each other",
    "seed": "the seed",
    "status": "done, failed or missing",
    "score": "the score on the test set; if all rows have one metric, the column has its name",
    "metric": "the metric of the score, if rows have different ones",
    "validation": "score on the validation split, where there is one",
    "amount": "epochs or share of the arm's budget; of a method, the amount of pruning",
    "schedule": "the arm's learning-rate schedule",
    "cap": "the largest factor by which a budget of FLOPs may extend the epochs",
    "capped": "whether the cap limited the epochs",
    "parent_counted": "whether the budget includes the unpruned network's training",
    BUDGET: "epochs of the unpruned network's training, where the study has several",
    "question": "the question that the two arms answer",
    "against": "the arm that it is compared with",
    "outcome": "better, equivalent, worse or undecided",
    "margin": "the difference below which both count as equivalent",
    "difference": "mean difference over seeds, first minus second",
    "low": "lower end of the 95 % interval",
    "high": "upper end of the 95 % interval",
    "p": "p-value of a difference, corrected by Holm",
    "p_equivalence": "p-value of equivalence within the margin (TOST), corrected by Holm",
    "needed": "estimated number of seeds that would decide the comparison",
    "note": "runs that the comparison could not use",
    "reasons": "reasons for no conclusion, or for caution",
    "setup": "what both sides have in common, as a code of Wang et al. (2023)",
    "contest": "the arm with which methods are compared, or the best retraining of each",
    "arms": "the arms that the row represents",
    "chosen": "how one of several arms was chosen; in tuning, the chosen trial",
    "before": "mean score before retraining",
    "cost": "the cost by which methods are compared",
    "cost_left": "the share of that cost that is left",
    "equal_cost": "whether all methods of the level cost the same within 5 %",
    "rules": "the learning rates and budgets of its arms, in words",
    "level": "one network, data set and amount, or all of them together",
    "first": "the first method",
    "second": "the second method",
    "p_first_better": "the share of seeds in which the first is better",
    "p_first_better_low": "lower end of its exact 95 % interval",
    "p_first_better_high": "upper end of its exact 95 % interval",
    "mean_rank": "mean rank over cells, 1 = best",
    "critical_difference": "critical difference of mean ranks (Nemenyi), from six cells on",
    "cells": "number of ranked cells",
    "friedman_chi2": "Friedman's statistic",
    "friedman_p": "p-value of Friedman's statistic",
    "iman_davenport_f": "the statistic of Iman and Davenport",
    "iman_davenport_p": "p-value of the statistic of Iman and Davenport",
    "pruned by": "the method and amount",
    "trials": "number of trials",
    "k": "a number of trials, from 1 to all",
    "expected_validation": "expected validation score of the best of k trials",
    "own_training_flops": "FLOPs of the row's own training",
    "own_seconds": "seconds of the row's own job",
    "seconds": "seconds of all jobs that the row depends on",
    "own_joules": "joules of the row's own job, where the machine measures them",
    "joules": "joules of all jobs that the row depends on",
    "jobs": "number of jobs that the row depends on",
    "trial_of": "the arm that it is a trial of",
}


@dataclass(frozen=True, kw_only=True)
class CsvFile:
    """A CSV file of a report: what its rows are, and its columns."""

    about: str
    forms: Mapping[str, Column]
    where_needed: tuple[str, ...] = field(default=())

    def columns(self) -> list[tuple[str, str, str]]:
        """Return name, type and meaning of each column; those not always present come last."""
        always = [
            (name, KINDS[kind], ABOUT.get(name, "")) for name, (kind, _) in self.forms.items()
        ]
        return [*always, *((name, "", ABOUT.get(name, "")) for name in self.where_needed)]


FILES: Mapping[str, CsvFile] = {
    "rows.csv": CsvFile(
        about="One row per cell and arm, over all seeds; also as `rows.parquet`.",
        forms=ROW_COLUMNS,
        where_needed=("validation", "metric", BUDGET),
    ),
    "runs.csv": CsvFile(
        about="A row for each seed of each arm.",
        forms=RUN_COLUMNS,
        where_needed=("validation", "metric", BUDGET),
    ),
    "verdicts.csv": CsvFile(about="A row for each comparison of arms.", forms=VERDICT_COLUMNS),
    "methods.csv": CsvFile(
        about="A row for each method of each comparison of methods.", forms=ENTRANT_COLUMNS
    ),
    "pairs.csv": CsvFile(about="A row for each pair of methods.", forms=PAIR_COLUMNS),
    "ranks.csv": CsvFile(about="A row for each method's average rank.", forms=RANK_COLUMNS),
    "tuning.csv": CsvFile(
        about="A row for each number of trials of each tuned arm.", forms=TUNING_COLUMNS
    ),
    "ledger.csv": CsvFile(
        about="A row for each row of `rows.csv`: what it cost.", forms=LEDGER_COLUMNS
    ),
}
