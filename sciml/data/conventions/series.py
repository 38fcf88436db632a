"""Series."""

from sciml.data.conventions import Convention

PLUGIN = Convention(group_dim="series", split="{by: time, fractions: {train: 0.7, validation: 0.1, test: 0.2}}")
