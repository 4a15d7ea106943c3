"""The one error that this package raises for its user. Its message says what is wrong and what to do."""


class SourceError(Exception):
    """A data set or a picture is missing, damaged or of the wrong form."""
