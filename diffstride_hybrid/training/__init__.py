"""Training and evaluation: one loop for every distribution strategy."""
