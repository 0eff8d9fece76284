"""Floor 1: the maths of attention as pure functions on tensors; torch alone."""

from .criss_cross import criss_cross as criss_cross
