"""The server's side. Never imports a site's."""
