"""The path of an inference request through a gateway."""
