"""From a model's files to a policy: one package for each format that training libraries write."""

from policy_server.formats.known_formats import load_policy

__all__ = ["load_policy"]
