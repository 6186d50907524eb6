"""Charts as SVG and pictures of maps."""
