"""What XLA's compiler for TPUs estimates of a training step, without a TPU."""
