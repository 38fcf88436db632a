"""Recordings of spikes: contiguous blocks of time, a second apart; a connection that isn't there has no delay."""

from sciml.data.conventions import Convention
from sciml.data.split_config import Fractions

PLUGIN = Convention(group_dim="recording", by="time", fractions=Fractions(train=0.7, validation=0.1, test=0.2),
                    gap_s=1.0, missing=("label", "parameter"), described=True,
                    split="{by: time, fractions: {train: 0.7, validation: 0.1, test: 0.2}}"
                          "  # gap: a second unless given")
