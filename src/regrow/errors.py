"""The exceptions that regrow raises for its users.

    RegrowError
    |- ConfigError      an invalid study, recipe, option or name
    |  |- TiedScores    a criterion gave all units the same score, so they cannot be ranked
    |  `- EditedFileError  a user's file was edited after the run that uses it had read it
    |- DataError        images or labels that are missing, damaged or mislabelled
    |- TraceError       a network whose channels cannot be followed or cut as asked
    |- StoreError       a store that cannot be read, written or trusted
    |  |- Damaged       stored content that differs from what was written
    |  |- Removed       tensors that were deleted to save space
    |  `- ClaimLost     a job taken over by another process, as its claim was not renewed
    |- TrainingError    a training that produced no usable network (diverged, not finite)
    |  `- CodeError     a user's function that fails, whatever network it is given
    `- Interrupted      a run stopped on request, which can be resumed
       `- RanksLost     one of several ranks ended, so that the others cannot continue

Each message says where the problem is, what was expected, what was found and what to do. The
command line prints it without a traceback and exits with code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

MOST_CHARACTERS = 4000  # of a message; about two screens
VALUE_CHARACTERS = 200  # of a value in a message


class RegrowError(Exception):
    """Base class of all errors that are meant for the user."""


class ConfigError(RegrowError):
    """An invalid study, recipe, option or name."""


class TiedScores(ConfigError):
    """A criterion gave all units the same score, so they cannot be ranked."""


class EditedFileError(ConfigError):
    """A user's file was edited after the run that uses it had read it."""


class DataError(RegrowError):
    """Images or labels that are missing, damaged or mislabelled."""


class TraceError(RegrowError):
    """A network whose channels cannot be followed or cut as asked."""


class StoreError(RegrowError):
    """A store that cannot be read, written or trusted."""


class Damaged(StoreError):
    """Stored content that differs from what was written."""


class Removed(StoreError):
    """Tensors that were deleted to save space; they can be computed again."""


class ClaimLost(StoreError):
    """A job taken over by another process, because this one did not renew its claim in time."""


class TrainingError(RegrowError):
    """A training that produced no usable network."""


class CodeError(TrainingError):
    """A user's function that fails, most likely for every network that it is given."""


class Interrupted(RegrowError):
    """A run stopped on request, which can be resumed.

    ``by`` is the number of the signal that stopped it; the command exits with code 128 + ``by``.
    """

    def __init__(self, message: str = "", *, by: int = 2) -> None:
        super().__init__(message)
        self.by = by


class RanksLost(Interrupted):
    """One of several ranks ended, so that the others cannot continue."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name, with the closest known names as suggestions.

    >>> unknown("model", "vgg-17", ["vgg-16", "vgg-19", "resnet-20"])
    "Unknown model 'vgg-17'. Did you mean 'vgg-19' or 'vgg-16'? Known: resnet-20, vgg-16, vgg-19."
    """
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def short(value: object) -> str:
    """Return a short text for any value; for an exception, its message.

    >>> short([0] * 1000), short({"a": 1})
    ('[0, 0, 0, 0, 0, 0, ...]', "{'a': 1}")
    """
    try:
        text = str(value) if isinstance(value, Exception) else Repr().repr(value)
    except (ValueError, RecursionError):  # an integer with too many digits, or too deep a nesting
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]} ..."


def shortened(message: str) -> str:
    """Shorten a message that is too long to read by cutting its middle, where a user's value is."""
    if len(message) <= MOST_CHARACTERS:
        return message
    return f"{message[: MOST_CHARACTERS // 2]} [...] {message[-MOST_CHARACTERS // 4 :]}"
