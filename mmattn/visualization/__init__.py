"""Pictures of what a network learned and predicts."""
