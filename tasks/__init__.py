"""How a host does one step of a migration: one module per step."""
