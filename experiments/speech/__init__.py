"""Tells voices in recorded speech apart, with 1-D poolings."""
