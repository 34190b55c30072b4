"""What every room stands on: errors, arguments, files, signals, devices."""
