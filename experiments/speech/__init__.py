"""Voices in recorded speech, with 1-D poolings."""
