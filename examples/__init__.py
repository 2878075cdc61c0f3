"""The same small application in several frameworks, and what they share."""
