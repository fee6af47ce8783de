"""Tokenizers without parameters: patches of pixels, and cached latents."""
