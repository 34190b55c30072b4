"""The studies: one module each, whose `STUDY` is the grid."""
