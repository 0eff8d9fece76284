"""Cost of networks and ablations of blocks, with their plots and schedulers."""
