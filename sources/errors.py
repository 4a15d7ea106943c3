"""What this package tells its user: one kind of error, and warnings."""

import os
import sys


class SourceError(Exception):
    """A data set or a picture is missing, damaged or of the wrong form. The message says what to do."""


class NotDownloadedError(SourceError):
    """Files of a data set are missing, and were not to be downloaded."""

    can_be_downloaded = True  # for those who cannot import this class, because sources/ is optional


def warn(text: str) -> None:
    """Print a warning in one line. Of the processes of torchrun, the first alone prints it."""
    if os.environ.get("RANK", "0") == "0":
        line = "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])
        print(f"WARNING: {line}", file=sys.stderr)
