"""Tokenizers without parameters: patches of pixels, and latents that were stored."""
