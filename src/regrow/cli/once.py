"""Commands that refuse an option given twice, because all but its last value would be lost."""

from collections import Counter
from typing import TYPE_CHECKING

from typer import Typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from typer._click import Context


class Once(TyperCommand):
    """A command each of whose options may stand once, except those that make a list."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Read what was typed; end with a usage error where an option stands again."""
        _, _, parsed = self.make_parser(ctx).parse_args(args=[*args])
        for option, times in Counter(parsed).items():
            if times > 1 and isinstance(option, TyperOption) and _has_one_value(option):
                ctx.fail(
                    f"{option.opts[0]} was given {times} times, and takes one value. Give it once."
                )
        return super().parse_args(ctx, args)


def refuse_repeats(app: Typer) -> None:
    """Make each command of an app, and of the apps in it, a ``Once``."""
    for command in app.registered_commands:
        command.cls = Once
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_repeats(group.typer_instance)


def _has_one_value(option: TyperOption) -> bool:
    """Tell options whose last value would stand for all from lists, and from flags without a no."""
    return not option.multiple and (not option.is_flag or bool(option.secondary_opts))
