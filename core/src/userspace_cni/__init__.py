"""A CNI plugin that attaches containers to user-space dataplanes."""
