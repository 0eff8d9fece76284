"""Hooks of every training run."""

from .hooks import CheckpointHook as CheckpointHook
from .hooks import ComparisonHook as ComparisonHook
from .hooks import CurvesHook as CurvesHook
