"""Who may do what: credentials, tokens, and the one authorisation function. Pure: no I/O, clock or random."""
