"""What the command line does, one module a subject; `generate.py` only names the commands."""
