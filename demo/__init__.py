"""The parts of frontend.py: a client of the server, the server as a child, the form, the charts.

Nothing in it loads a policy: the page shows a server's answers over HTTP.
"""
