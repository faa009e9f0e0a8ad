"""A cluster as the integration tests have it, for what somebody may write into its Redis."""

from __future__ import annotations

from tests.integration.conftest import cluster, redis, redis_there

__all__ = ["cluster", "redis", "redis_there"]
