"""What samples tell of a layer: second moments of its inputs and of the gradients at its outputs."""
