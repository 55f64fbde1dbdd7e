"""One module per outside thing. A sensor knows no other one, and of the model only what was told of its own thing."""
