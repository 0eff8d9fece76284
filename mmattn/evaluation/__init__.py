"""Metrics."""

from .iou import IoUMetric as IoUMetric
