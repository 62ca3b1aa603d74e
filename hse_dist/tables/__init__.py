"""Packed rows on TorchRec: layout, lookup, placement, sharding."""
