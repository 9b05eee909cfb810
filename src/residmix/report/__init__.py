"""Reports of fitted models, as one page."""
