"""The grids, one study in each file."""
