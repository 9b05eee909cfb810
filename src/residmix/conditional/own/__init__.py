"""Effects by component: starts, residuals, and effects without rows."""
