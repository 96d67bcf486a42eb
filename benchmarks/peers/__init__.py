"""The same policy behind other servers, each in a virtual environment of its own.

Nothing here imports policy_server: `network` computes the policy with NumPy alone.
"""
