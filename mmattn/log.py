"""The log of a run: warnings, and what of it the console shows."""

import logging

from mmengine.logging import print_log


def warn(text: str) -> None:
    """Log a warning with the current logger of mmengine."""
    print_log(text, logger='current', level=logging.WARNING)


def shorten_console(logger: logging.Logger) -> None:
    """Keep the long dumps that mmengine's runner logs at the start out of the console."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_brief)


def _is_brief(record: logging.LogRecord) -> bool:
    long = 'System environment', 'Config:', 'Hooks will be executed', 'paramwise_options'
    return not record.getMessage().lstrip('\n- ').startswith(long)
