"""The pure core: decides, and never does.

Nothing in this room does I/O, reads a clock, draws entropy, starts a thread or knows an
event loop; a test over the imports keeps it so. Time and randomness come in as
parameters, so every rule can be tested by its table.
"""
