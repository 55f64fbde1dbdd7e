"""One module per outside thing; a sensor knows no other sensor, and of the model only what was told of its own thing."""
