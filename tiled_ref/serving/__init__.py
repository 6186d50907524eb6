"""A trained ensemble on new images."""
