"""Configurations of atoms: those of one molecule stay together; frames of few molecules are split in order."""

from sciml.data.conventions import Convention

PLUGIN = Convention(group_dim="configuration", together="molecule", missing=("label", "parameter"), timed=False,
                    described=True,
                    split="null  # usual: whole molecules, or the order of the file where there are fewer than ten")
