"""The detection data that a study asks for: one frozen, checked value."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from regrow.core.validation import is_int
from regrow.data.spec import MEMORY_LIMIT_BYTES, OnError
from regrow.errors import ConfigError, unknown
from regrow.train.recipe import Recipe

# The framework's for one image a step; the drop falls after epoch 5 of 7.
VOC_RECIPE = Recipe(epochs=7, batch=1, lr=1e-3, drop_at=(5 / 7,))

# What one epoch shows: every picture twice, as it is and mirrored (the framework's); or once,
# mirrored or not by chance; or as it is.
AUGMENTATIONS = ("flipped-copies", "flip", "none")

PREFIX = "voc:"
SHAPES = "voc-shapes"  # drawn by the seed, where there are no files


@dataclass(frozen=True)
class DetectionSpec:
    """A detection data set by name, ``voc:PATH`` or ``voc-shapes``, and what of it is used.

    ``on_error``: at a broken annotation or an unreadable image, ``stop``, or ``skip``: leave that
    image out, with a notice.
    ``classes``: those expected; another one is a broken annotation. None: as they are found.
    ``subset``, ``test_subset``: how many images, drawn by ``seed``; a larger draw contains a
    smaller one.
    ``memory_limit_bytes``: images that need more than this are decoded again for each use.
    """

    name: str
    on_error: OnError = "stop"
    classes: tuple[str, ...] | None = None
    subset: int | None = None
    test_subset: int | None = None
    seed: int = 0
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and self.name.startswith(PREFIX) and self.location
        if not named and self.name != SHAPES:
            raise ConfigError(
                f"A detection data set is named '{PREFIX}PATH', with the path of a folder in the "
                f"layout of PASCAL VOC, or '{SHAPES}', which is drawn. Got {self.name!r}."
            )
        if self.on_error not in get_args(OnError):
            known = get_args(OnError)
            raise ConfigError(f"{self.name}: {unknown('on_error', str(self.on_error), known)}")
        for option, low in (("subset", 1), ("test_subset", 1), ("seed", 0)):
            value = getattr(self, option)
            if value is None and option != "seed":
                continue
            if not is_int(value, least=low):
                raise ConfigError(
                    f"{self.name}: the {option!r} must be an int of at least {low}. Got {value!r}."
                )
        if self.classes is not None and (
            len(set(self.classes)) != len(self.classes)
            or not self.classes
            or not all(isinstance(c, str) and c for c in self.classes)
        ):
            raise ConfigError(
                f"{self.name}: 'classes' must list different names. Got {list(self.classes)!r}."
            )

    @property
    def location(self) -> str:
        """Return the path; empty for pictures that are drawn."""
        if self.name == SHAPES:
            return ""
        return self.name.removeprefix(PREFIX)

    @property
    def label(self) -> str:
        """Return what it is called in a table."""
        return Path(self.location).name or self.name

    def to_json(self) -> dict[str, Any]:
        """Return the name and the options that differ from their defaults."""
        return {
            f.name: list(value) if isinstance(value, tuple) else value
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default
        }

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> "DetectionSpec":
        """Read a name alone, or a mapping of ``name`` and options; refuse unknown options."""
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or "name" not in given:
            raise ConfigError(
                f"A detection data set must be a name or a mapping with one. Got {value!r}."
            )
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise ConfigError(f"Detection data set: {unknown('option', str(key), known)}")
        options: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items()
        }
        return cls(**options)
