"""Speed and memory of blocks and networks against baselines, side by side."""
