"""The HTTP API: one table of routes, and handlers that take (request, principal, services) and never see a socket."""
