"""Named builders of data sets: modules whose ``PLUGIN(options: dict)`` returns a lazy, canonical ``xr.Dataset``."""
