"""The only layer that touches the world: arguments, files, Spark sessions, processes."""
