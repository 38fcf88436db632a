"""The workflow that adapts a checkpoint to another store. Read `workflow.py` from top to bottom."""
