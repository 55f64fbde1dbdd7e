"""One module per outside thing; a sensor knows neither another sensor nor the model."""
