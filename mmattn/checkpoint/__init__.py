"""Checkpoint files: downloading, reading without executing, writing atomically, loading."""
