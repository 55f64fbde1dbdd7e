"""Each module looks at one topic: `look()` gives its facts. Run in processes of their own by `doctor.looking`."""
