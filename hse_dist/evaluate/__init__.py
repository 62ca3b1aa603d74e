"""How good a model is: exact top lists over the whole catalogue, metrics, and intervals for differences."""
