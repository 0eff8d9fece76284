"""Training, testing and their guarantees."""

from .hooks import CurvesHook as CurvesHook
from .hooks import PlainCheckpointHook as PlainCheckpointHook
