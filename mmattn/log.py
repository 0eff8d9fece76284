"""Warnings in the log of a run."""

import logging

from mmengine.logging import print_log


def warn(text: str) -> None:
    """Log a warning with the current logger of mmengine."""
    print_log(text, logger='current', level=logging.WARNING)
