"""A run over a volume: plan, blocks, and who writes them."""
