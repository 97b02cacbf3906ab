"""From a recipe to a device package: a folder that a device with an inference runtime and nothing else works from."""
