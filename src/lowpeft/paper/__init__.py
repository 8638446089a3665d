"""Tables of papers as data (`experiments`), and running them (`reproduce`)."""
