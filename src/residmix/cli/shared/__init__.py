"""Shared parts of the subcommands: options, messages, data, columns, output."""
