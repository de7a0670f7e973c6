"""Registers the profiles before pytest reads --hypothesis-profile."""

from . import cases as cases
