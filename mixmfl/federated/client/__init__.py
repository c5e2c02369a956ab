"""A site's side. Never imports the server's."""
