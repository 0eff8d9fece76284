"""Metrics, and the scoring of saved results."""
