"""Floor 3: blocks at named places of any network, and what is to know of them there."""

from .insert import Plugin as Plugin
from .insert import inherited as inherited
from .insert import insert as insert
from .insert import keep_learning as keep_learning
from .insert import plugged as plugged
from .report import Report as Report
from .report import Row as Row
from .report import report as report
