"""The parts of the manual that the code knows: tables of the reference, and man pages.

``make docs`` writes all of it, and the HTML pages. The result is committed, so that people can read
it in the repository; ``tests/unit/test_manual.py`` fails when it is out of date.
"""
