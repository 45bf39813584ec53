"""Strings <-> token ids. This package depends on no network."""
