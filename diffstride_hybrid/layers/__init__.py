"""The Keras layers that pool, one class or one family of classes a file."""
