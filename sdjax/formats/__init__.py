"""Bytes <-> tensors by name: safetensors and torch's files. It knows no network."""
