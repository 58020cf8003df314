"""Spark and Arrow transforms: frames (or Arrow batches) in, frames out. No files, no clock, no TensorFlow."""
