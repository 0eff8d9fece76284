"""A rehearsal before the first step: one small step and one validation on a copy."""
