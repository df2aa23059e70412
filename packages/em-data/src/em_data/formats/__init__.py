"""Volumes from addresses: one file for each format."""

from em_data.formats.address import open_volume

__all__ = ["open_volume"]
