"""Settings: typed, described, with units; flags > environment > file > defaults.

    load        from the four places to one frozen dataclass; describes every setting for the docs
    toml        the writer that the standard library lacks
    sections    what all daemons share: [listen] [limits] [timers] [log] [telemetry] [auth]
    arguments   the command line that all daemons share

The dataclass of a daemon lives with the daemon (metadata/config.py, objectd/config.py, tierstore/gateway/config.py).
"""
