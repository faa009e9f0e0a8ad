"""Celery as Sojourn's programs and its workers use it: signed messages, sealed results."""
