"""The training system: one loop for every distribution strategy."""
