"""Array operations of the decoder: matrix products with LoRA, attention, packing, quantisation."""
