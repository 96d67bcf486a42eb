"""What is served: the scheduler that turns many observations into few calls of a backend."""
