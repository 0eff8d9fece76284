"""Bit-exact resume: data order, loops and random number generators."""
