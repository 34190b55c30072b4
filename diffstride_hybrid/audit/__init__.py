"""Measures what a network for images keeps, loses and withstands: consistency, aliasing, corruptions, attacks, cost."""
