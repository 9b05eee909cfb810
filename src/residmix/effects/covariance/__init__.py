"""Covariances of levels, brought to the pooled one."""
