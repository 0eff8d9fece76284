"""Pictures of what a network learned and predicts, and recordings of where it looks."""

from .comparison import colourise as colourise
from .comparison import compare as compare
from .comparison import overlay as overlay
from .curves import plot_curves as plot_curves
from .recording import record as record
