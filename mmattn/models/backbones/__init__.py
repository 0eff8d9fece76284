"""Backbones whose attention a plugin cannot express."""
