"""Blocks at named places of any network, and a report of what they are and cost there."""

from .insert import insert as insert
from .plugin import Plugin as Plugin
from .plugin import keep_trainable as keep_trainable
from .plugin import named_plugins as named_plugins
from .report import BlockReport as BlockReport
from .report import BlockRow as BlockRow
from .report import report as report
from .weights import adapt_state_dict as adapt_state_dict
