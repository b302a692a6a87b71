"""Beam transforms and the records that travel between them."""
