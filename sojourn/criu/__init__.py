"""CRIU: its command lines, its files, its error messages, and what it leaves behind."""
