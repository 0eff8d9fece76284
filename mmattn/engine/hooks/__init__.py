"""Hooks: one of them per file. Importing this package registers them."""

from .checkpoint import CheckpointHook as CheckpointHook
from .comparison import ComparisonHook as ComparisonHook
from .curves import CurvesHook as CurvesHook
from .guard import GuardHook as GuardHook
from .randomness import RandomnessHook as RandomnessHook
from .runtime_info import RuntimeInfoHook as RuntimeInfoHook
from .validation_loss import ValidationLossHook as ValidationLossHook
