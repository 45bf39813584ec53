"""Families of models, as data: the networks that they are made of, and the published configurations."""
