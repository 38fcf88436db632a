"""Named builders of data sets: modules whose ``PLUGIN(options: dict) -> xr.Dataset`` returns a lazy, canonical dataset."""
