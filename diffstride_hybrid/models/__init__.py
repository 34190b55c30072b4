"""The networks: ResNets with any pooling, and checkpoints of the release."""
