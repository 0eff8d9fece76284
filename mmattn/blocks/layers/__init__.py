"""Layers that several blocks share."""
