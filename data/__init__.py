"""Sources, tokenizers, the batch plan, augmentation and the loader: numpy only, on the host."""
