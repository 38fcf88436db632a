"""Images of subjects: whole subjects are split, those of one person (frames, sessions) together."""

from sciml.data.conventions import Convention

PLUGIN = Convention(group_dim="subject", together="person", timed=False, described=True,
                    split="{by: fold, folds: 5, test: 0, validation: 1}  # whole subjects in the order of their names, "
                          "those of one person together")
