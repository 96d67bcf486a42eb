"""Applications that are measured beside the real one, each a factory for `uvicorn --factory`."""
