"""Helpers that every room of the package uses: errors, arguments, files, signals, versions, distribution."""
