"""Tables of papers as data (`experiments`), and code that runs them (`reproduce`)."""
