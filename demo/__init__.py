"""The parts of frontend.py: a client of the server, the server as a child, the form, the charts.

Nothing in it loads a policy: what the page shows is what a server answers over HTTP.
"""
