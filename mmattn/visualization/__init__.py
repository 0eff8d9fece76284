"""Pictures of what a network learned and predicts."""

from .comparison import colourise as colourise
from .comparison import compare as compare
from .comparison import overlay as overlay
from .curves import plot_curves as plot_curves
