"""Sojourn moves running Linux processes between hosts without putting their memory on a disk."""

__version__ = "0.1.0"
