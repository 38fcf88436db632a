"""The one error that a user's mistake raises: it says where, what was found, what was expected and how to mend it."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Something a user handed over can't be used.

    `where` is a file, URL or object, or several names; `key` a variable, attribute or option inside it. The command
    line prints the message and exits with 2 when a call is wrong and 1 when a file is.

    >>> print(InputError("lab.h5", key="vorticity", found="3 NaN", expected="finite values", fix="set missing: mask"))
    lab.h5 [vorticity]: found 3 NaN; expected finite values. Fix: set missing: mask
    >>> InputError(("run 1", "run 2"), found="", expected="", fix="").where
    'run 1, run 2'
    """

    def __init__(self, where: object, *, key: object = None, found: Any, expected: str, fix: str) -> None:
        place = ", ".join(map(str, where)) if isinstance(where, tuple) else str(where)
        self.where, self.key, self.found, self.expected, self.fix = place, key, found, expected, fix
        super().__init__(self.where, key, found, expected, fix)

    def __str__(self) -> str:
        key = f" [{self.key}]" if self.key is not None else ""
        return f"{self.where}{key}: found {self.found}; expected {self.expected}. Fix: {self.fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.where, self.key, self.found, self.expected, self.fix)


def _rebuild(where: str, key: object, found: Any, expected: str, fix: str) -> InputError:
    return InputError(where, key=key, found=found, expected=expected, fix=fix)
