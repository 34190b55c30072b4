"""A network with max pooling, swapped for spectral poolings and trained on."""
