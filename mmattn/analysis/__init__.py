"""What a network costs and what a block brings: cost tables, ablations and their plots."""
