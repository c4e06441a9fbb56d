"""The image, built and tried on a machine without a Docker engine: make image-check."""
