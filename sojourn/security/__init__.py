"""Certificates: the identity of hosts, and the authority that issues them."""
