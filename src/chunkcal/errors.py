"""The one exception that a user's mistake raises, and the words that messages share."""

from __future__ import annotations

import difflib
from collections.abc import Collection

LONGEST = 900  # characters of a line; a value that a user put in the wrong place can be of any length


class UserError(Exception):
    """Something that the user can put right: says what is wrong, where, and the remedy, in one line each."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*(_readable(line) for line in lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """The problems, one per line."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.args)


def refuse_braces(where: str, path: str) -> None:
    """Refuse a path that Snakemake would look for wildcards in; it cannot be told not to.

    Raises
    ------
    UserError
        There is a brace in it.
    """
    if set("{}") & set(path):
        raise UserError(
            f"{where}: {path} has braces in it, which a workflow takes for wildcards; link to it by another path"
        )


def _readable(line: object) -> str:
    """Escape what a terminal would not show or would act on, and leave out the middle of what nobody would read."""
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(line))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} ... {text[-290:]}"


def near_miss(word: object, known: Collection[str], there_are: str = "there are") -> str:
    """Name the word that was probably meant, whatever its case, else all that exist: ``; did you mean timestep?``."""
    lower = {name.lower(): name for name in reversed(list(known))}
    near = difflib.get_close_matches(str(word).lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]}?" if near else f"; {there_are} {', '.join(known) or 'none'}"


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 slot``, ``2 slots``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
