"""The workflow that pretrains one operator on several stores. Read `workflow.py` from top to bottom."""
