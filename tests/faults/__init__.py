"""Faults under load, one by one, with every request counted: `python -m tests.faults [NAME ...]`.

Each fault has servers of its own, which clients ask without a pause, each on one connection that is
kept open. It prints the table of docs/reliability.md. `processes` has the deaths of parts of a
server, `stops` those of the whole, `redis` those of the store of sessions, `network` two hosts and
what lies between them, `clock` a clock that is set, `policies` observations that harm a policy,
`hostile` clients whose connections harm a server.
"""
