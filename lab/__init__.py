"""Hosts made of namespaces on one machine, and workloads to move between them.

Nothing is imported here: the workloads lie in this package too, and run where Sojourn's libraries
are not.
"""
