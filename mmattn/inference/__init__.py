"""Trained networks applied: prediction on files, attention views, export."""
