"""What is done to any Keras model: look into it, count it, swap its poolings, export it."""
