"""The engines that are tuned for TensorFlow: transforms, products, and the choice between them."""
