"""The grids: one study a file."""
