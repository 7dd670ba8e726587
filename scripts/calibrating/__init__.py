"""Fitting the expected error: sets of pairs with known truth, runs of a bundle's own pieces, the page."""
