"""Training the music autoencoder, which compresses stereo log-mel spectrograms eightfold in bands and in time.

The phases follow Chen et al., "Deep Compression Autoencoder" (arXiv 2410.10733), with the length of the spectrogram in
the place of image resolution: attention in the deepest stage spans all of it.
"""
