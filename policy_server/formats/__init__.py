"""From a model's files to a policy: one package for each format that training libraries write."""
