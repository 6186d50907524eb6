"""Shared utilities, independent of the method: errors, files, arrays, progress, memory."""
