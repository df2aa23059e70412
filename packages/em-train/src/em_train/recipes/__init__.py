"""Recipes: one file each, read from top to bottom. They never import each other."""
