"""Flower with Sojourn's pages: what operators see and do in a browser."""
