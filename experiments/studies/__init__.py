"""Studies: grids of runs, how they are run, recorded and drawn."""
