"""What must hold in a store of one domain: modules named after it whose ``PLUGIN(store)`` yields `Finding`s."""
