"""Decoders with rotary positions: config, forward pass, cache, latent attention."""
