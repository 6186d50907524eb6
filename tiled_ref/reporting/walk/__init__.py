"""The walk of one image through the whole method: `run.py --explain`."""
