"""Series."""

from sciml.data.conventions import Convention

PLUGIN = Convention(group_dim="series")
