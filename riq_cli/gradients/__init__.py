"""Which weights matter to a model's outputs: gradients, taken back through its operations one after the other."""
