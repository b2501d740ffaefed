"""Keys of a convolution on keyed pixels, found in one ciphertext of its matrix: places, channels, gains."""
