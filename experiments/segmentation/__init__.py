"""Segments street scenes with U-Nets that pool in three ways."""
