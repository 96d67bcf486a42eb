"""One module a question: each fills its part of `Results`."""
