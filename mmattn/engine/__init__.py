"""Training, testing and their guarantees."""

from .hooks import CheckpointHook as CheckpointHook
from .hooks import ComparisonHook as ComparisonHook
from .hooks import CurvesHook as CurvesHook
