"""Active learning: the pool, who answers, and the loop that wires everything."""
