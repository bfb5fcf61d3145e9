"""What a run would take on a machine that is not here: memory, time and price, by formula and by compilation."""
