"""Preflight: what can be known before anything is touched."""
