"""Strings <-> token ids. It knows no network."""
