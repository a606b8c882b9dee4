"""Architectures: one file each; module names are the checkpoints' key names."""
