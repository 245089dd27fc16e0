"""What a process shows of itself: log lines and metrics. Neither ever holds a secret; metrics never a key or bucket.

    log         one line per event, key=value or JSON
    metrics     counters, gauges and histograms beside the code they count; the list of them all for the docs
"""
