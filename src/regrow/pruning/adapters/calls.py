"""Names with arguments, as written in a study: ``MagnitudeImportance(p=1)``."""

import ast
from typing import Any

from regrow.errors import ConfigError


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Split a call into its name and its arguments, which are plain values.

    >>> read_call("LnStructured(n=1, dim=0)"), read_call("L1")
    (('LnStructured', {'n': 1, 'dim': 0}), ('L1', {}))
    """
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise ConfigError(
            f"{text!r} is not a name with arguments. Write it like 'MagnitudeImportance(p=1)', "
            "each argument by its name, as a number, a text or a list of these."
        ) from None
    return name.strip(), arguments
