"""Kill tests and soak tests that users may run on their own configs."""
