"""How memory and images cross from one host to the other."""
