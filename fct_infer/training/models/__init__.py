"""Backbones and transformations as torch modules."""
