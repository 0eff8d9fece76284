"""Training, testing and their guarantees."""
