"""Define metrics: the scores of networks, with the facts that a report needs to compare them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from regrow.core.texts import listed
from regrow.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The score in the rows of a report, with its names, direction and resolution.

    Attributes:
        key: its name in a record, where its value is unscaled (accuracy as a share).
        name: its name in tables and sentences.
        axis: the label of a figure's axis.
        about: the sentence under the tables, without its full stop.
        baseline: a predictor that has learnt nothing, as a phrase.
        beats_baseline: a phrase for a network that has learnt something, used as in "is not ...".
        unit: the unit of values, in a column's heading.
        difference_unit: the unit of differences and margins.
        factor: the value in a report divided by the value in a record.
        better: the direction of an improvement.
        margin: the default difference below which arms count as equivalent.
        digits: the number of decimals.
        example: the noun for one test example.
        counted: whether it is the share of test examples that were answered correctly. Then chance
            and sampling error are those of a binomial count; else the record has an error.
        per_loss: the most that one unit of training loss can change it; None if unknown.
    """

    key: str
    name: str
    axis: str
    about: str
    baseline: str
    beats_baseline: str = "above chance"
    unit: str = ""
    difference_unit: str = ""
    factor: float = 1.0
    better: Literal["higher", "lower"] = "higher"
    margin: float
    digits: int = 3
    example: str = "example"
    counted: bool = False
    per_loss: float | None = None

    @property
    def head(self) -> str:
        """The heading of its column: ``accuracy %``."""
        return f"{self.name} {self.unit}".rstrip()

    @property
    def unit_word(self) -> str:
        """Its unit in machine-readable files: ``percent``."""
        return "percent" if self.unit == "%" else self.difference_unit

    @property
    def error_key(self) -> str:
        """The name, in a record, of its standard error over the test examples."""
        return f"{self.key}_error"

    def reported(self, value: float) -> float:
        """Convert a record's value to the scale of reports."""
        return self.factor * value

    def gain(self, difference: float) -> float:
        """Return a difference, with its sign changed if necessary so that positive is better.

        >>> BITS_PER_BYTE.gain(-0.25)
        0.25
        """
        return difference if self.better == "higher" else -difference

    def amount(self, number: str) -> str:
        """Return a difference with its unit: ``0.3 points``, ``1 point``."""
        unit = self.difference_unit
        return f"{number} {unit.removesuffix('s') if number == '1' else unit}".rstrip()


ACCURACY = Metric(
    key="accuracy",
    name="accuracy",
    axis="test accuracy (%)",
    about="Accuracy is that of the last epoch on the test set",
    baseline="always naming the most frequent class",
    unit="%",
    difference_unit="points",
    factor=100.0,
    margin=0.3,  # about two standard deviations of the paper's rows
    digits=2,
    example="image",
    counted=True,
    # The cross-entropy of a wrong answer is at least ln 2.
    per_loss=100 / math.log(2),
)
EXAMPLE_ACCURACY = replace(ACCURACY, example="example")
TOKEN_ACCURACY = replace(
    ACCURACY,
    key="token_accuracy",
    name="token accuracy",
    axis="test token accuracy (%)",
    about="Token accuracy is the share of tokens whose class is right, of the last epoch on the "
    "test sequences",
    example="sequence",
    counted=False,
)
R_SQUARED = Metric(
    key="r2",
    name="R2",
    axis="test R2",
    about="R2 is one minus the squared error over that of predicting the mean of the training "
    "targets, of the last epoch on the test set",
    baseline="predicting the mean of the training targets",
    beats_baseline="better than predicting the mean",
    margin=0.01,
    example="row",
    # Targets are standardised, so the squared error of predicting their mean is about 1.
    per_loss=1.0,
)
BITS_PER_BYTE = Metric(
    key="bits_per_byte",
    name="bits per byte",
    axis="test bits per byte",
    about="Bits per byte is the mean cross-entropy of the next byte, of the last epoch on the test "
    "text; lower is better",
    baseline="predicting bytes by their frequency in the training text",
    beats_baseline="better than byte frequencies",
    difference_unit="bits",
    better="lower",
    margin=0.02,
    example="window",
    per_loss=1 / math.log(2),
)
PERPLEXITY = Metric(
    key="perplexity",
    name="perplexity",
    axis="test perplexity",
    about="Perplexity is e to the mean cross-entropy of the next token, of the last epoch on the "
    "test sequences; lower is better",
    baseline="predicting tokens by their frequency in the training sequences",
    beats_baseline="better than token frequencies",
    better="lower",
    margin=0.2,
    example="sequence",
)
MEAN_AP = replace(
    ACCURACY,
    key="map",
    name="mAP",
    axis="mAP (%)",
    about="mAP is the mean over classes of VOC 2007's average precision (11 points, IoU 0.5) on "
    "the test images after the last epoch",
    baseline="the untrained detector with one lucky box",
    counted=False,
    per_loss=None,
)

# Scores that differ by less than 1e-9 are equal but for rounding, so margins are far larger.
LEAST_MARGIN = 1e-6


def check_margin(margin: float | None, metrics: Sequence[Metric]) -> None:
    """Raise ``ConfigError`` if a margin is for metrics of several units, or exceeds all scores."""
    if margin is None:
        return
    if len({metric.difference_unit or metric.key for metric in metrics}) > 1:
        own = [f"{m.amount(f'{m.margin:g}')} ({m.name})" for m in metrics]
        raise ConfigError(
            f"One 'margin' of {margin:g} cannot hold for several metrics, which have other units: "
            f"{listed([m.name for m in metrics])}. Leave it out: each metric then has its own, "
            f"{listed(own)}."
        )
    if any(metric.unit == "%" and margin >= metric.factor for metric in metrics):
        raise ConfigError(
            f"The 'margin' is in points of {metrics[0].name}, of which there are 100. Got "
            f"{margin:g}."
        )
