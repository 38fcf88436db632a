"""From a lab's file to a store and back: schema, readers, building, validation, reading with bounded memory."""
