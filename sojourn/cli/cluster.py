"""The cluster as the command line sees it."""

from sojourn.cluster import Cluster

__all__ = ["Cluster"]
