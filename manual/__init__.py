"""The manual as far as the program knows it: tables of the reference, and man pages.

``make docs`` writes all of it, and the HTML pages. What is written stands in the repository, so that people can read it
there; ``tests/unit/test_manual.py`` says when it is out of date.
"""
