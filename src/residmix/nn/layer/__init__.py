"""The layer that removes the effects of metadata from a tensor."""
