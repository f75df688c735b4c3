"""The data of a job: how to load them, and what identifies their content."""

from dataclasses import dataclass

from regrow.data import DataSpec


@dataclass(frozen=True, kw_only=True)
class Material:
    """The images of a job: how to load them, the identity of their content, their shape."""

    spec: DataSpec
    content: str  # fingerprint, the same wherever the files lie
    channels: int
    size: int
    classes: int
    num_train: int
    num_test: int
    num_most_frequent: int | None = None  # test images of the most frequent class, where counted
    notices: tuple[str, ...] = ()  # for people: no part of any key

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return (1, self.channels, self.size, self.size)

    @property
    def chance(self) -> float | None:
        """The accuracy of always predicting the most frequent class of the test set, in percent."""
        if self.num_most_frequent is None:
            return None
        return 100 * self.num_most_frequent / self.num_test
