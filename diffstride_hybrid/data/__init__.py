"""Image-classification data: where it comes from, and the batches that a run reads."""
