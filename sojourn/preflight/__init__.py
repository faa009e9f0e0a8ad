"""Preflight: the checks of both hosts before anything is touched."""
