"""What TensorFlow, JAX and PyTorch do differently below Keras: tracing, sizes that are not known, compiled steps."""
