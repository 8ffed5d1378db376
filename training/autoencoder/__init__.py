"""Training the music autoencoder: spectrograms of both channels to latents an eighth as wide and as long, and back.

The phases are those of Chen et al., "Deep Compression Autoencoder" (arXiv 2410.10733). What is an image's resolution
there is a spectrogram's length here: attention in the deepest stage reaches over all of it.
"""
