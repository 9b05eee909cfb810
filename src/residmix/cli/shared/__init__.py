"""What subcommands share: options, errors in a person's words, data, columns, output."""
