"""Policy Server: a trained reinforcement-learning policy behind a URL."""

__version__ = "0.1.0"
