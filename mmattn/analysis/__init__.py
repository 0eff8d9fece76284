"""Cost of networks, ablations of blocks and the context probe, with plots and schedulers."""
