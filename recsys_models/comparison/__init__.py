"""A comparison: cells that are run, tables and pictures that are made of them."""
