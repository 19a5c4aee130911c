"""What a plugin is: protocols, hooks, options, and where they are found."""
