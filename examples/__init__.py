"""The same small application for several frameworks, and the modules that they share."""
