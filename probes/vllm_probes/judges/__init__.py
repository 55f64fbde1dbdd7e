"""Pure functions and data: no I/O, no clock, no threads."""
