"""Experiments on diffstride_hybrid: what is measured, and how."""
