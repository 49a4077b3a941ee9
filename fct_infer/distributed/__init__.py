"""Upgrades on many machines."""
