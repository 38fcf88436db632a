"""The operator: stem → blocks at several scales → heads. The only thing with learned weights; knows no domain."""
