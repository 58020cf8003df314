"""TensorFlow and NumPy: arrays in, arrays out. Never imports Spark or the jobs."""
