"""Tables, figures, the report page and the walk of one image."""
