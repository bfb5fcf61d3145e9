"""How good, how well calibrated and how label-efficient a model is."""
