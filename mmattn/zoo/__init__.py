"""Published weights: making them and finding them."""
