"""Failing operations on files, one by one: `python -m tests.injected_faults [NAME ...]`.

Each operation of a command, of a start, of a deployment fails once, with a full disk or a broken
one; after each, the files have to be the old ones or the new ones, and the next try has to work.
"""
