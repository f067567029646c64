"""Measurements of the running product, each beside its baseline in the same run. `make bench` runs all of them."""
