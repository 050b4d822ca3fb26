"""Errors that name the thing, the limit and the way out."""


class UserError(ValueError):
    """Something the user can mend; the message says what and how, so a command shows it without a traceback."""


class PackageError(UserError):
    """A weight package is missing, damaged or does not fit what it says of itself."""
