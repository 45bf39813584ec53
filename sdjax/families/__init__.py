"""Families of models as data: which networks they are made of, and the published configurations."""
