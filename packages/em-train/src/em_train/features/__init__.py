"""Frozen runs as sources of features."""
