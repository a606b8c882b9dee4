"""The mathematics of sampling: tensors in, tensors out; no networks, no files."""
