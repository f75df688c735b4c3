"""Commands that refuse an option given twice, because all but its last value would be lost."""

from collections import Counter
from typing import TYPE_CHECKING

from typer import Typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from typer._click import Context


class Once(TyperCommand):
    """A command that accepts each option once, except lists and plain flags."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Parse the arguments; end with a usage error if an option is repeated."""
        _, _, parsed = self.make_parser(ctx).parse_args(args=[*args])
        for option, times in Counter(parsed).items():
            if times > 1 and isinstance(option, TyperOption) and _has_one_value(option):
                ctx.fail(
                    f"{option.opts[0]} was given {times} times, but takes one value. Give it once."
                )
        return super().parse_args(ctx, args)


def refuse_repeats(app: Typer) -> None:
    """Make each command of an app, and of its nested apps, a ``Once``."""
    for command in app.registered_commands:
        command.cls = Once
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_repeats(group.typer_instance)


def _has_one_value(option: TyperOption) -> bool:
    """Return whether repeating an option could lose a value: not a list or a flag without a no."""
    return not option.multiple and (not option.is_flag or bool(option.secondary_opts))
