"""Decode heads with attention."""
