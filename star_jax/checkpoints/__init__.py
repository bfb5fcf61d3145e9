"""File formats of models and adapters: Hugging Face folders, PEFT folders, merged checkpoints, the hub."""
