"""The exceptions that regrow raises for its users.

    RegrowError
    |- ConfigError      an invalid study, recipe, option or name
    |  `- TiedScores    scores of a criterion that are all equal, so that they cannot decide
    |- DataError        images or labels that are missing, damaged or mislabelled
    |- TraceError       a network whose channels cannot be followed or cut as asked
    |- StoreError       a store that cannot be read, written or trusted
    |  |- Damaged       something stored that is not what was written
    |  |- Removed       tensors that were removed to save room
    |  `- ClaimLost     a job that another process took over, because this one was silent
    |- TrainingError    a training that produced no usable network (diverged, not finite)
    |  `- CodeError     a function of the user's own that is wrong, whatever network it is given
    `- Interrupted      a run stopped on request; what was under way can be resumed
       `- RanksLost     one of several ranks ended, so that the others cannot continue

Each message says where, what was expected, what came, and what to do. The command line prints it
without a traceback and exits with code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

MOST_CHARACTERS = 4000  # of a message: two screens
VALUE_CHARACTERS = 200


class RegrowError(Exception):
    """Base of every error that is meant for the user."""


class ConfigError(RegrowError):
    """An invalid study, recipe, option or name."""


class TiedScores(ConfigError):
    """Scores of a criterion that are all equal, so that they cannot decide what to remove."""


class DataError(RegrowError):
    """Images or labels that are missing, damaged or mislabelled."""


class TraceError(RegrowError):
    """A network whose channels cannot be followed or cut as asked."""


class StoreError(RegrowError):
    """A store that cannot be read, written or trusted."""


class Damaged(StoreError):
    """Something stored that is not what was written."""


class Removed(StoreError):
    """Tensors that were removed to save room; they can be computed again."""


class ClaimLost(StoreError):
    """A job that another process took over, because this one was silent for too long."""


class TrainingError(RegrowError):
    """A training that produced no usable network."""


class CodeError(TrainingError):
    """A function of the user's own that is wrong, most likely for every network it is given."""


class Interrupted(RegrowError):
    """A run stopped on request; what was under way can be resumed.

    ``by`` is the number of the signal that asked for it: the command's exit code is 128 more.
    """

    def __init__(self, message: str = "", *, by: int = 2) -> None:
        super().__init__(message)
        self.by = by


class RanksLost(Interrupted):
    """One of several ranks ended, so that the others cannot continue."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Word the message for a name that is not known, nearest names first.

    >>> unknown("model", "vgg-17", ["vgg-16", "vgg-19", "resnet-20"])
    "Unknown model 'vgg-17'. Did you mean 'vgg-19' or 'vgg-16'? Known: resnet-20, vgg-16, vgg-19."
    """
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def short(value: object) -> str:
    """Write a value that may be anything, in few words; of an error, its message.

    >>> short([0] * 1000), short({"a": 1})
    ('[0, 0, 0, 0, 0, 0, ...]', "{'a': 1}")
    """
    try:
        text = str(value) if isinstance(value, Exception) else Repr().repr(value)
    except (ValueError, RecursionError):  # of an integer or a nesting without end
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]} ..."


def shortened(message: str) -> str:
    """Leave out the middle of a message that is too long to read: a user's value stands there."""
    if len(message) <= MOST_CHARACTERS:
        return message
    return f"{message[: MOST_CHARACTERS // 2]} [...] {message[-MOST_CHARACTERS // 4 :]}"
