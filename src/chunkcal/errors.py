"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """Something that the user can put right: says what is wrong, where, and the remedy, in one line."""
