"""Times the poolings on every backend of Keras."""
