"""Times the layers and the training step against the released code."""
