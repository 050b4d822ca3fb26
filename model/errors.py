"""Errors that name the thing, the limit and the way out."""


class PackageError(ValueError):
    """A weight package is missing, damaged or does not fit what it says of itself."""
