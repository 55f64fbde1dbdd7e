"""From facts to checks: pure, no I/O, no clock."""
