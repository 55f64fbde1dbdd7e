"""The text of a log: lines over a growing file, what they are, which of them show."""
