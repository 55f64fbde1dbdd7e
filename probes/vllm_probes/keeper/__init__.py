"""The process that samples, judges, records and acts; it survives the terminal."""
