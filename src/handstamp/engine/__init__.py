"""The engine: the core's rules carried out on a store, with a cache in front."""
